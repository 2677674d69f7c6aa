package workload

import (
	"slices"
	"strconv"
	"strings"
)

// span is a run of completion indexes, both ends included.
type span struct{ first, last int }

// indexes is a set of completion indexes as ordered, disjoint runs with a gap between any two. A
// million indexes that are done cost one span.
type indexes []span

// parseIndexes reads "1,3-5,7", as Jobs write it in status.completedIndexes and successPolicy, up to
// but without limit. What cannot be read is left out.
func parseIndexes(text string, limit int) indexes {
	var spans indexes
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil || first < 0 || first >= limit {
			continue
		}
		last := first
		if isRange {
			if last, err = strconv.Atoi(to); err != nil || last < first {
				continue
			}
		}
		spans = append(spans, span{first, min(last, limit-1)})
	}
	return spans.normal()
}

// normal orders runs and joins those that touch.
func (x indexes) normal() indexes {
	slices.SortFunc(x, func(a, b span) int { return a.first - b.first })
	var joined indexes
	for _, s := range x {
		if n := len(joined); n > 0 && s.first <= joined[n-1].last+1 {
			joined[n-1].last = max(joined[n-1].last, s.last)
		} else {
			joined = append(joined, s)
		}
	}
	return joined
}

// with returns the set with more indexes in it.
func (x indexes) with(more ...int) indexes {
	grown := slices.Clone(x)
	for _, i := range more {
		grown = append(grown, span{i, i})
	}
	return grown.normal()
}

func (x indexes) union(o indexes) indexes { return append(slices.Clone(x), o...).normal() }

func (x indexes) total() int {
	n := 0
	for _, s := range x {
		n += s.last - s.first + 1
	}
	return n
}

func (x indexes) has(i int) bool {
	_, found := slices.BinarySearchFunc(x, i, func(s span, i int) int {
		switch {
		case s.last < i:
			return -1
		case s.first > i:
			return 1
		}
		return 0
	})
	return found
}

// common is how many indexes both sets have.
func (x indexes) common(o indexes) int {
	n, i, j := 0, 0, 0
	for i < len(x) && j < len(o) {
		n += max(min(x[i].last, o[j].last)-max(x[i].first, o[j].first)+1, 0)
		if x[i].last < o[j].last {
			i++
		} else {
			j++
		}
	}
	return n
}

// missing returns the lowest indexes below limit that are not in the set, at most count.
func (x indexes) missing(count, limit int) []int {
	var free []int
	next := 0
	for _, s := range append(slices.Clone(x), span{limit, limit}) {
		for ; next < min(s.first, limit) && len(free) < count; next++ {
			free = append(free, next)
		}
		next = max(next, s.last+1)
	}
	return free
}

// String writes the set as Jobs do: two neighbours by a comma, more by a dash.
func (x indexes) String() string {
	var b strings.Builder
	for _, s := range x {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(s.first))
		switch s.last - s.first {
		case 0:
		case 1:
			b.WriteString("," + strconv.Itoa(s.last))
		default:
			b.WriteString("-" + strconv.Itoa(s.last))
		}
	}
	return b.String()
}
