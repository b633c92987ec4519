package scheduler

import "strings"

// Reasons are the filters that an explanation ([Result.Explanation], kept in a task's status) names, in the order of the
// filters. Nothing else is taken from the text, so that who counts by them has few things to count.
func Reasons(explanation string) []Filter {
	rest, ok := strings.CutPrefix(explanation, noSuitableNode)
	if !ok {
		return nil
	}
	var out []Filter
	for f := filterNone + 1; f < filterCount; f++ {
		if strings.Contains(rest, f.stem()) {
			out = append(out, f)
		}
	}
	return out
}

// stem is what the filter's words have in common, however many nodes failed it.
func (f Filter) stem() string {
	before, after, _ := strings.Cut(f.words(1), "1 node")
	if len(after) > len(before) {
		return after
	}
	return before
}
