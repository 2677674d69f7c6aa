package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// The names of the checkers, as violations carry them.
const (
	CheckLinearizable = "linearizable"
	CheckOrdered      = "ordered"
	CheckUnique       = "unique"
	CheckReliable     = "reliable"
	CheckAtomic       = "atomic"
	CheckResumable    = "resumable"
	CheckBookmarkable = "bookmarkable"
	CheckReads        = "reads"
	CheckMonotonic    = "monotonic"
	CheckDurable      = "durable"
	// CheckUndecided is no violation of the store's: a history was too tangled to be judged in time.
	CheckUndecided = "undecided"
)

// Violation is a promise that was not kept.
type Violation struct {
	Checker string
	// At is when it became visible.
	At      time.Duration
	Key     string
	Message string
	// Operations and Watches are the IDs of those that it is about.
	Operations []int
	Watches    []int
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: at %.3f s: %s: %s", v.Checker, v.At.Seconds(), v.Key, v.Message)
}

// Options bound the checking.
type Options struct {
	// Timeout bounds the search for an order of each object's operations; 0 means a minute. One that takes longer is undecided.
	Timeout time.Duration
	// Most bounds the number of violations that are reported; 0 means 50. One bug often shows everywhere.
	Most int
}

// Check runs all checkers. The violations come in the order of time.
func Check(h *History, options Options) []Violation {
	if options.Timeout == 0 {
		options.Timeout = time.Minute
	}
	if options.Most == 0 {
		options.Most = 50
	}
	log, found := newLog(h)
	found = append(found, checkWatches(h, log)...)
	found = append(found, checkReads(h, log)...)
	found = append(found, checkMonotonic(h)...)
	found = append(found, checkDurable(h, log)...)
	found = append(found, checkLinearizable(h, log, options.Timeout)...)
	slices.SortStableFunc(found, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	return found[:min(len(found), options.Most)]
}
