package vip

import (
	"cmp"
	"slices"
)

// Table holds the fronts of all owners (Services, pods with host ports) and tells what a set of changes means for the
// ruleset, at a cost that depends on the changes and not on the size of the table. PURE; not safe for concurrent use.
//
// Two owners may want the same front (an external IP used twice). The one whose name sorts first has it; the other
// gets it when the first lets go.
type Table struct {
	claims map[FrontKey][]claim // sorted by owner; the first one counts
	owned  map[string][]FrontKey
	chains map[Chain]int // how many verdicts lead there

	before       map[FrontKey]*Front // fronts touched since the last Flush, as they were; nil: absent
	chainsBefore map[Chain]int       // likewise
}

type claim struct {
	owner string
	front *Front
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{
		claims: map[FrontKey][]claim{}, owned: map[string][]FrontKey{}, chains: map[Chain]int{},
		before: map[FrontKey]*Front{}, chainsBefore: map[Chain]int{},
	}
}

// Set makes fronts all that owner has. Of two fronts with the same key the first one counts.
func (t *Table) Set(owner string, fronts []Front) {
	next := make(map[FrontKey]*Front, len(fronts))
	var keys []FrontKey
	for i := range fronts {
		if _, twice := next[fronts[i].Key]; !twice {
			next[fronts[i].Key] = &fronts[i]
			keys = append(keys, fronts[i].Key)
		}
	}
	for _, key := range t.owned[owner] {
		if next[key] == nil {
			t.put(key, owner, nil)
		}
	}
	for _, key := range keys {
		t.put(key, owner, next[key])
	}
	if len(keys) == 0 {
		delete(t.owned, owner)
	} else {
		t.owned[owner] = keys
	}
}

// put replaces owner's claim on key; nil withdraws it.
func (t *Table) put(key FrontKey, owner string, front *Front) {
	was := t.front(key)
	claims := t.claims[key]
	at, found := slices.BinarySearchFunc(claims, owner, func(c claim, owner string) int { return cmp.Compare(c.owner, owner) })
	switch {
	case found && front == nil:
		claims = slices.Delete(claims, at, at+1)
	case found:
		claims[at].front = front
	case front != nil:
		claims = slices.Insert(claims, at, claim{owner, front})
	}
	if len(claims) == 0 {
		delete(t.claims, key)
	} else {
		t.claims[key] = claims
	}
	now := t.front(key)
	if now.equal(was) {
		return
	}
	if _, touched := t.before[key]; !touched {
		t.before[key] = was
	}
	t.count(was, -1)
	t.count(now, +1)
}

func (t *Table) front(key FrontKey) *Front {
	if claims := t.claims[key]; len(claims) > 0 {
		return claims[0].front
	}
	return nil
}

func (t *Table) count(f *Front, by int) {
	if f == nil {
		return
	}
	for _, verdict := range []func() (Verdict, bool){f.inside, f.outside} {
		v, ok := verdict()
		if !ok || v.Drop {
			continue
		}
		if _, touched := t.chainsBefore[v.Chain]; !touched {
			t.chainsBefore[v.Chain] = t.chains[v.Chain]
		}
		t.chains[v.Chain] += by
		if t.chains[v.Chain] == 0 {
			delete(t.chains, v.Chain)
		}
	}
}

// Flush returns what has changed since the last Flush.
func (t *Table) Flush() Changes {
	old, next := NewState(), NewState()
	for key, was := range t.before {
		if was != nil {
			old.add(was)
		}
		if now := t.front(key); now != nil {
			next.add(now)
		}
	}
	clear(old.Chains) // the touched fronts' chains are shared with untouched ones: the counts decide
	clear(next.Chains)
	for chain, count := range t.chainsBefore {
		if count > 0 {
			old.Chains[chain] = struct{}{}
		}
		if t.chains[chain] > 0 {
			next.Chains[chain] = struct{}{}
		}
	}
	t.before, t.chainsBefore = map[FrontKey]*Front{}, map[Chain]int{} // new ones: those that were large at the start take long to walk ever after
	return Diff(old, next)
}

// State is the table as a whole.
func (t *Table) State() State {
	s := NewState()
	for key := range t.claims {
		s.add(t.front(key))
	}
	return s
}
