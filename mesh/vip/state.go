package vip

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// State is the data of the ruleset: the elements of its maps, and the chains they point to. The rules themselves are
// constant.
type State struct {
	Vips      map[FrontKey]Verdict           // every client, unless Outside has an answer
	Outside   map[FrontKey]Verdict           // clients from outside the cluster
	Refused   map[FrontKey]struct{}          // nobody answers: say so at once
	Endpoints map[EndpointKey]netip.AddrPort // whom the chains pick from
	Sticky    map[StickyKey]struct{}         // whom a returning client may return to
	Guarded   map[FrontKey]struct{}          // answer only clients from their Sources
	Sources   map[SourceKey]struct{}
	Chains    map[Chain]struct{}
}

// NewState returns the empty state.
func NewState() State {
	return State{
		Vips: map[FrontKey]Verdict{}, Outside: map[FrontKey]Verdict{}, Refused: map[FrontKey]struct{}{},
		Endpoints: map[EndpointKey]netip.AddrPort{}, Sticky: map[StickyKey]struct{}{}, Chains: map[Chain]struct{}{},
		Guarded: map[FrontKey]struct{}{}, Sources: map[SourceKey]struct{}{},
	}
}

// add puts a front's elements and chains into s.
func (s State) add(f *Front) {
	if v, ok := f.inside(); ok {
		s.Vips[f.Key] = v
		s.addChain(v)
	}
	if v, ok := f.outside(); ok {
		s.Outside[f.Key] = v
		s.addChain(v)
	}
	if f.refused() {
		s.Refused[f.Key] = struct{}{}
	}
	for i, target := range f.Targets {
		s.Endpoints[EndpointKey{f.Key, uint32(i)}] = target
	}
	if f.LocalOutside {
		for i, target := range f.Local {
			s.Endpoints[EndpointKey{f.Key, uint32(localIndex + i)}] = target
		}
	}
	if len(f.Sources) > 0 {
		s.Guarded[f.Key] = struct{}{}
	}
	for _, source := range f.Sources {
		s.Sources[SourceKey{f.Key, source}] = struct{}{}
	}
	if f.Affinity > 0 {
		for _, target := range f.everyTarget() {
			s.Sticky[StickyKey{f.Key, target}] = struct{}{}
		}
	}
}

func (s State) addChain(v Verdict) {
	if !v.Drop {
		s.Chains[v.Chain] = struct{}{}
	}
}

// everyTarget is where connections of the front may go.
func (f *Front) everyTarget() []netip.AddrPort {
	if !f.LocalOutside {
		return f.Targets
	}
	return sortTargets(slices.Concat(f.Targets, f.Local))
}

// Changes is what turns one State into another, in the order of application: chains are made, elements deleted, elements
// added (one whose data changed is in both lists), chains removed.
type Changes struct {
	AddChains    []Chain
	Delete, Add  Elements
	DeleteChains []Chain
	// Gone are UDP targets that a front lost. Their conntrack entries would keep clients on them.
	Gone []StickyKey
}

// Elements are entries of the maps.
type Elements struct {
	Vips, Outside []VerdictElement
	Refused       []FrontKey
	Endpoints     []EndpointElement
	Sticky        []StickyKey
	Guarded       []FrontKey
	Sources       []SourceKey
}

// VerdictElement is an entry of Vips or Outside.
type VerdictElement struct {
	Key     FrontKey
	Verdict Verdict
}

// EndpointElement is an entry of Endpoints.
type EndpointElement struct {
	Key    EndpointKey
	Target netip.AddrPort
}

// Empty reports whether there is nothing to do.
func (c Changes) Empty() bool {
	return len(c.AddChains)+len(c.DeleteChains)+len(c.Gone) == 0 && c.Delete.count()+c.Add.count() == 0
}

func (e Elements) count() int {
	return len(e.Vips) + len(e.Outside) + len(e.Refused) + len(e.Endpoints) + len(e.Sticky) + len(e.Guarded) + len(e.Sources)
}

// Diff returns what turns old into next, sorted.
func Diff(old, next State) Changes {
	var c Changes
	c.Delete.Vips, c.Add.Vips = diffMaps(old.Vips, next.Vips, verdictElement)
	c.Delete.Outside, c.Add.Outside = diffMaps(old.Outside, next.Outside, verdictElement)
	c.Delete.Refused, c.Add.Refused = diffMaps(old.Refused, next.Refused, first[FrontKey])
	c.Delete.Endpoints, c.Add.Endpoints = diffMaps(old.Endpoints, next.Endpoints, endpointElement)
	c.Delete.Sticky, c.Add.Sticky = diffMaps(old.Sticky, next.Sticky, first[StickyKey])
	c.Delete.Guarded, c.Add.Guarded = diffMaps(old.Guarded, next.Guarded, first[FrontKey])
	c.Delete.Sources, c.Add.Sources = diffMaps(old.Sources, next.Sources, first[SourceKey])
	c.DeleteChains, c.AddChains = diffMaps(old.Chains, next.Chains, first[Chain])
	c.Gone = goneUDP(old, next)
	c.sort()
	return c
}

// goneUDP finds the UDP targets in old that next does not have.
func goneUDP(old, next State) []StickyKey {
	remain := make(map[StickyKey]struct{}, len(next.Endpoints))
	for key, target := range next.Endpoints {
		if key.Front.Protocol == UDP {
			remain[StickyKey{key.Front, target}] = struct{}{}
		}
	}
	gone := map[StickyKey]struct{}{}
	for key, target := range old.Endpoints {
		was := StickyKey{key.Front, target}
		if _, still := remain[was]; key.Front.Protocol == UDP && !still {
			gone[was] = struct{}{}
		}
	}
	return slices.Collect(maps.Keys(gone))
}

// Apply carries out c on s itself, as strictly as the kernel: deleting what is absent or adding what is there already
// with other data is an error, and so is a verdict that leads to a chain that is not there.
func (s State) Apply(c Changes) error {
	for _, chain := range c.AddChains {
		s.Chains[chain] = struct{}{}
	}
	if err := s.delete(c.Delete); err != nil {
		return err
	}
	if err := s.insert(c.Add); err != nil {
		return err
	}
	for _, chain := range c.DeleteChains {
		if _, ok := s.Chains[chain]; !ok {
			return fmt.Errorf("delete chain %s: no such chain", chain.Name())
		}
		delete(s.Chains, chain)
	}
	for _, verdicts := range []map[FrontKey]Verdict{s.Vips, s.Outside} {
		for key, v := range verdicts {
			if _, ok := s.Chains[v.Chain]; !v.Drop && !ok {
				return fmt.Errorf("%s goes to chain %s, which does not exist", key, v.Chain.Name())
			}
		}
	}
	return nil
}

func (s State) delete(e Elements) error {
	for _, v := range e.Vips {
		if err := remove("vip", s.Vips, v.Key, v.Verdict); err != nil {
			return err
		}
	}
	for _, v := range e.Outside {
		if err := remove("outside", s.Outside, v.Key, v.Verdict); err != nil {
			return err
		}
	}
	for _, p := range e.Endpoints {
		if err := remove("endpoint", s.Endpoints, p.Key, p.Target); err != nil {
			return err
		}
	}
	return errors.Join(
		removeAll("refused", s.Refused, e.Refused), removeAll("sticky", s.Sticky, e.Sticky),
		removeAll("guarded", s.Guarded, e.Guarded), removeAll("source", s.Sources, e.Sources),
	)
}

func (s State) insert(e Elements) error {
	for _, v := range e.Vips {
		if err := put("vip", s.Vips, v.Key, v.Verdict); err != nil {
			return err
		}
	}
	for _, v := range e.Outside {
		if err := put("outside", s.Outside, v.Key, v.Verdict); err != nil {
			return err
		}
	}
	for _, p := range e.Endpoints {
		if err := put("endpoint", s.Endpoints, p.Key, p.Target); err != nil {
			return err
		}
	}
	putAll(s.Refused, e.Refused)
	putAll(s.Sticky, e.Sticky)
	putAll(s.Guarded, e.Guarded)
	putAll(s.Sources, e.Sources)
	return nil
}

func remove[K, V comparable](what string, m map[K]V, key K, value V) error {
	if was, ok := m[key]; !ok || was != value {
		return fmt.Errorf("delete %s %v: not there as %v", what, key, value)
	}
	delete(m, key)
	return nil
}

func removeAll[K comparable](what string, m map[K]struct{}, keys []K) error {
	for _, key := range keys {
		if err := remove(what, m, key, struct{}{}); err != nil {
			return err
		}
	}
	return nil
}

func put[K, V comparable](what string, m map[K]V, key K, value V) error {
	if was, ok := m[key]; ok && was != value {
		return fmt.Errorf("add %s %v: there already as %v", what, key, was)
	}
	m[key] = value
	return nil
}

func putAll[K comparable](m map[K]struct{}, keys []K) {
	for _, key := range keys {
		m[key] = struct{}{}
	}
}

// String lists everything, one element a line, sorted: the same text for the same state.
func (s State) String() string {
	var lines []string
	for key, v := range s.Vips {
		lines = append(lines, fmt.Sprintf("vip %s %s", key, v))
	}
	for key, v := range s.Outside {
		lines = append(lines, fmt.Sprintf("outside %s %s", key, v))
	}
	for key := range s.Refused {
		lines = append(lines, fmt.Sprintf("refused %s", key))
	}
	for key, target := range s.Endpoints {
		kind, index := "endpoint", key.Index
		if index >= localIndex {
			kind, index = "local", index-localIndex
		}
		lines = append(lines, fmt.Sprintf("%s %s %d %s", kind, key.Front, index, target))
	}
	for key := range s.Sticky {
		lines = append(lines, fmt.Sprintf("sticky %s %s", key.Front, key.Target))
	}
	for key := range s.Guarded {
		lines = append(lines, fmt.Sprintf("guarded %s", key))
	}
	for key := range s.Sources {
		lines = append(lines, fmt.Sprintf("source %s %s", key.Front, key.Source))
	}
	for chain := range s.Chains {
		lines = append(lines, "chain "+chain.Name())
	}
	slices.Sort(lines)
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

func (c *Changes) sort() {
	for _, e := range []*Elements{&c.Delete, &c.Add} {
		byVerdictKey := func(a, b VerdictElement) int { return a.Key.compare(b.Key) }
		slices.SortFunc(e.Vips, byVerdictKey)
		slices.SortFunc(e.Outside, byVerdictKey)
		slices.SortFunc(e.Refused, FrontKey.compare)
		slices.SortFunc(e.Endpoints, func(a, b EndpointElement) int {
			return cmp.Or(a.Key.Front.compare(b.Key.Front), cmp.Compare(a.Key.Index, b.Key.Index))
		})
		slices.SortFunc(e.Sticky, compareSticky)
		slices.SortFunc(e.Guarded, FrontKey.compare)
		slices.SortFunc(e.Sources, func(a, b SourceKey) int {
			return cmp.Or(a.Front.compare(b.Front), a.Source.Compare(b.Source))
		})
	}
	byName := func(a, b Chain) int { return strings.Compare(a.Name(), b.Name()) }
	slices.SortFunc(c.AddChains, byName)
	slices.SortFunc(c.DeleteChains, byName)
	slices.SortFunc(c.Gone, compareSticky)
}

func compareSticky(a, b StickyKey) int {
	return cmp.Or(a.Front.compare(b.Front), a.Target.Compare(b.Target))
}

// diffMaps lists the entries to delete and to add; a changed one is in both.
func diffMaps[K, V comparable, E any](old, next map[K]V, element func(K, V) E) (del, add []E) {
	for key, value := range old {
		if now, ok := next[key]; !ok || now != value {
			del = append(del, element(key, value))
		}
	}
	for key, value := range next {
		if was, ok := old[key]; !ok || was != value {
			add = append(add, element(key, value))
		}
	}
	return del, add
}

func verdictElement(key FrontKey, v Verdict) VerdictElement { return VerdictElement{key, v} }

func endpointElement(key EndpointKey, target netip.AddrPort) EndpointElement {
	return EndpointElement{key, target}
}

func first[K any](key K, _ struct{}) K { return key }

// sortTargets sorts targets in place and removes duplicates.
func sortTargets(targets []netip.AddrPort) []netip.AddrPort {
	slices.SortFunc(targets, netip.AddrPort.Compare)
	return slices.Compact(targets)
}
