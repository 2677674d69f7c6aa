package vip

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	nl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Dump reads the table back from the kernel: the elements as State prints them, then each chain that is not made from
// the state with the number of its rules. (The nft program of Debian 12 aborts on some of these chains.)
func (k *kernelRuleset) Dump(context.Context) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	state, base, err := k.read()
	if err != nil {
		return "", fmt.Errorf("read nftables table %s: %w", tableName, err)
	}
	return state.String() + base, nil
}

// read returns an empty state if there is no table.
func (k *kernelRuleset) read() (State, string, error) {
	s := NewState()
	chains, err := k.conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return s, "", err
	}
	var base []string
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		if shape, ok := parseChain(c.Name); ok {
			if !slices.Contains(k.idle, shape) {
				s.Chains[shape] = struct{}{}
			}
			continue
		}
		rules, err := k.conn.GetRules(k.maps.table, c)
		if err != nil {
			return s, "", fmt.Errorf("chain %s: %w", c.Name, err)
		}
		base = append(base, fmt.Sprintf("base %s: %d rules\n", c.Name, len(rules)))
	}
	if len(base) == 0 {
		return s, "", nil
	}
	slices.Sort(base)
	return s, strings.Join(base, ""), k.readElements(s)
}

func (k *kernelRuleset) readElements(s State) error {
	return errors.Join(
		k.each(k.maps.vips, func(front FrontKey, e nftables.SetElement) error {
			v, err := decodeVerdict(e.Val)
			s.Vips[front] = v
			return err
		}),
		k.each(k.maps.outside, func(front FrontKey, e nftables.SetElement) error {
			v, err := decodeVerdict(e.Val)
			s.Outside[front] = v
			return err
		}),
		k.each(k.maps.refused, func(front FrontKey, _ nftables.SetElement) error {
			s.Refused[front] = struct{}{}
			return nil
		}),
		k.each(k.maps.endpoints, func(front FrontKey, e nftables.SetElement) error {
			if len(e.Key) < frontBytes+indexBytes {
				return fmt.Errorf("key of %d bytes is too short", len(e.Key))
			}
			target, err := decodeTarget(e.Val)
			s.Endpoints[EndpointKey{front, nativeIndex(e.Key[frontBytes:])}] = target
			return err
		}),
		k.each(k.maps.guarded, func(front FrontKey, _ nftables.SetElement) error {
			s.Guarded[front] = struct{}{}
			return nil
		}),
		k.each(k.maps.sources, func(front FrontKey, e nftables.SetElement) error {
			source, err := decodeSource(e.Key, e.KeyEnd)
			s.Sources[SourceKey{front, source}] = struct{}{}
			return err
		}),
		k.each(k.maps.sticky, func(front FrontKey, e nftables.SetElement) error {
			target, err := decodeTarget(e.Key[frontBytes:])
			s.Sticky[StickyKey{front, target}] = struct{}{}
			return err
		}),
	)
}

func (k *kernelRuleset) each(set *nftables.Set, do func(FrontKey, nftables.SetElement) error) error {
	elements, err := k.conn.GetSetElements(set)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set %s: %w", set.Name, err)
	}
	for _, e := range elements {
		front, err := decodeFront(e.Key)
		if err == nil {
			err = do(front, e)
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", set.Name, err)
		}
	}
	return nil
}

// decodeVerdict reads a verdict's netlink attributes.
func decodeVerdict(data []byte) (Verdict, error) {
	attributes, err := nl.UnmarshalAttributes(data)
	if err != nil {
		return Verdict{}, fmt.Errorf("verdict: %w", err)
	}
	var (
		kind  expr.VerdictKind
		chain string
	)
	for _, a := range attributes {
		switch a.Type {
		case unix.NFTA_VERDICT_CODE:
			kind = expr.VerdictKind(int32(bigUint32(a.Data)))
		case unix.NFTA_VERDICT_CHAIN:
			chain = strings.TrimRight(string(a.Data), "\x00")
		}
	}
	if kind == expr.VerdictDrop {
		return Verdict{Drop: true}, nil
	}
	shape, ok := parseChain(chain)
	if kind != expr.VerdictGoto || !ok {
		return Verdict{}, fmt.Errorf("verdict %d to chain %q is not one of ours", kind, chain)
	}
	return Verdict{Chain: shape}, nil
}

// parseChain reverses Chain.Name.
func parseChain(name string) (Chain, bool) {
	parts := strings.Split(name, "_")
	var c Chain
	switch {
	case len(parts) != 2 && (len(parts) != 4 || parts[2] != "sticky"), parts[0] != "lb" && parts[0] != "local":
		return Chain{}, false
	}
	c.Local = parts[0] == "local"
	var err error
	if c.Count, err = strconv.Atoi(parts[1]); err != nil {
		return Chain{}, false
	}
	if len(parts) == 4 {
		if c.Affinity, err = strconv.Atoi(parts[3]); err != nil {
			return Chain{}, false
		}
	}
	return c, c.Name() == name
}
