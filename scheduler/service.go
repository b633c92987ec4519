package scheduler

import "slices"

// service counts the active tasks of one service on every node, by slot. Most services run on few of many nodes, for
// which a sorted list is small and fast. One that runs on a good part of all nodes is counted in an array, and knows
// besides how many nodes have how many of its tasks, so that the least used ones are found without sorting.
type service struct {
	few   []slotCount // by slot; empty when many is used
	many  []int32
	nodes int // with a count other than 0
	// having holds, at n, the number of nodes with n tasks, for n >= 1. Only kept with many.
	having []int32
}

type slotCount struct{ slot, count int32 }

// denseFrom says from how many nodes on the array is the better form, given the number of slots.
func denseFrom(slots int) int { return max(32, slots/16) }

// find gives the place of the slot in the list.
func (s *service) find(slot int32) (int, bool) {
	lo, hi := 0, len(s.few)
	for lo < hi {
		if mid := (lo + hi) / 2; s.few[mid].slot < slot {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < len(s.few) && s.few[lo].slot == slot
}

func (s *service) count(slot int32) int32 {
	switch {
	case s == nil:
		return 0
	case s.many != nil:
		if int(slot) < len(s.many) {
			return s.many[slot]
		}
		return 0
	}
	if i, found := s.find(slot); found {
		return s.few[i].count
	}
	return 0
}

// add changes the count of a node; slots is the number of slots there are.
func (s *service) add(slot, delta int32, slots int) {
	if s.many != nil {
		s.addMany(slot, delta)
		return
	}
	i, found := s.find(slot)
	switch {
	case !found:
		s.few = slices.Insert(s.few, i, slotCount{slot, delta})
		s.nodes++
	case s.few[i].count+delta == 0:
		s.few = slices.Delete(s.few, i, i+1)
		s.nodes--
	default:
		s.few[i].count += delta
	}
	if s.nodes > denseFrom(slots) {
		few := s.few
		s.few, s.many, s.nodes = nil, make([]int32, slots), 0
		for _, c := range few {
			s.addMany(c.slot, c.count)
		}
	}
}

func (s *service) addMany(slot, delta int32) {
	s.grow(int(slot) + 1)
	before := s.many[slot]
	after := before + delta
	s.many[slot] = after
	if before > 0 {
		s.having[before]--
		s.nodes--
	}
	if after > 0 {
		for int(after) >= len(s.having) {
			s.having = append(s.having, 0)
		}
		s.having[after]++
		s.nodes++
	}
}

// grow gives the array room for that many slots.
func (s *service) grow(slots int) {
	for len(s.many) < slots {
		s.many = append(s.many, 0)
	}
}

// each calls f for every node that runs tasks of the service.
func (s *service) each(f func(slot, count int32)) {
	if s == nil {
		return
	}
	for _, c := range s.few {
		f(c.slot, c.count)
	}
	for slot, n := range s.many {
		if n != 0 {
			f(int32(slot), n)
		}
	}
}
