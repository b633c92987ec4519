package scheduler

// service counts the active tasks of one service on every node, by slot. Most services run on few of many nodes, which
// a map holds best; one that runs on a good part of all nodes is counted in an array, which is smaller and faster then.
type service struct {
	few   map[int32]int32
	many  []int32
	nodes int // with a count other than 0
}

// denseFrom says from how many nodes on the array is the better form, given the number of slots.
func denseFrom(slots int) int { return max(32, slots/16) }

func (s *service) count(slot int32) int32 {
	if s == nil {
		return 0
	}
	if s.many != nil {
		if int(slot) < len(s.many) {
			return s.many[slot]
		}
		return 0
	}
	return s.few[slot]
}

// add changes the count of a node; slots is the number of slots there are.
func (s *service) add(slot, delta int32, slots int) {
	before := s.count(slot)
	after := before + delta
	switch {
	case before == 0 && after != 0:
		s.nodes++
	case before != 0 && after == 0:
		s.nodes--
	}
	if s.many == nil && s.nodes > denseFrom(slots) {
		s.many = make([]int32, slots)
		for k, n := range s.few {
			s.many[k] = n
		}
		s.few = nil
	}
	if s.many != nil {
		for int(slot) >= len(s.many) {
			s.many = append(s.many, 0)
		}
		s.many[slot] = after
		return
	}
	if after == 0 {
		delete(s.few, slot)
		return
	}
	if s.few == nil {
		s.few = make(map[int32]int32)
	}
	s.few[slot] = after
}

// each calls f for every node that runs tasks of the service, in no particular order.
func (s *service) each(f func(slot, count int32)) {
	if s == nil {
		return
	}
	for slot, n := range s.few {
		f(slot, n)
	}
	for slot, n := range s.many {
		if n != 0 {
			f(int32(slot), n)
		}
	}
}
