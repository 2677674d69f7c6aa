package membership

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/serf/serf"
)

// Join enters the cluster through any of addrs and returns at the first success; it retries by itself until ctx ends.
// The remaining addresses are tried in the background, so that peers restarted all at once cannot end up as islands.
// It returns ErrNameTaken (wrapped, with the other's ID) if a live peer uses our name. No addresses: nothing to do.
func (m *Membership) Join(ctx context.Context, addrs []netip.AddrPort) error {
	others := slices.DeleteFunc(slices.Clone(addrs), func(a netip.AddrPort) bool { return a == m.advertise })
	if len(others) == 0 {
		return nil
	}
	wait := retryFirst
	for {
		missed, err := m.tryJoin(ctx, others)
		if len(missed) < len(others) {
			go m.joinStrays(missed)
			return m.checkName(ctx)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("join through %v: %w", others, errors.Join(ctx.Err(), err))
		}
		m.logger.Info("no peer reached yet, trying again", "addresses", others, "err", err)
		if !m.pause(ctx, wait) {
			if ctx.Err() == nil {
				return ErrClosed
			}
			return fmt.Errorf("join through %v: %w", others, errors.Join(ctx.Err(), err))
		}
		wait = min(2*wait, retryMost)
	}
}

// tryJoin goes through addrs until one answers, and returns those that were not reached.
func (m *Membership) tryJoin(ctx context.Context, addrs []netip.AddrPort) (missed []netip.AddrPort, err error) {
	var errs []error
	for i, addr := range addrs {
		if ctx.Err() != nil {
			return append(missed, addrs[i:]...), errors.Join(errs...)
		}
		if _, err := m.serf.Join([]string{addr.String()}, true); err != nil {
			missed, errs = append(missed, addr), append(errs, err)
			continue
		}
		return append(missed, addrs[i+1:]...), nil
	}
	return missed, errors.Join(errs...)
}

// joinStrays keeps trying addresses that no live member stands for.
func (m *Membership) joinStrays(addrs []netip.AddrPort) {
	ctx, cancel := context.WithTimeout(context.Background(), strayJoins)
	defer cancel()
	for m.pause(ctx, retryMost) {
		addrs = slices.DeleteFunc(addrs, m.isAliveAt)
		if len(addrs) == 0 {
			return
		}
		for _, addr := range addrs {
			if _, err := m.serf.Join([]string{addr.String()}, true); err != nil {
				m.logger.Debug("peer address does not answer", "address", addr, "err", err)
			}
		}
	}
}

// pause waits for d; false when ctx ended or the membership closed first.
func (m *Membership) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-m.serf.ShutdownCh():
		return false
	case <-timer.C:
		return true
	}
}

// checkName waits a moment for a namesake to be found dead: a machine that was wiped and joins anew meets its former self.
func (m *Membership) checkName(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, nameGrace)
	defer cancel()
	for {
		other, taken := m.namesake()
		if !taken {
			return nil
		}
		if !m.pause(ctx, gossipInterval) {
			return fmt.Errorf("%w: %q is used by live peer %s at %s", ErrNameTaken, m.name, other.PeerID, other.Address)
		}
	}
}

func (m *Membership) namesake() (Member, bool) {
	for _, s := range m.serf.Members() {
		if other := decodeMember(s); other.Name == m.name && other.PeerID != m.id && other.Status == Alive {
			return other, true
		}
	}
	return Member{}, false
}

func (m *Membership) isAliveAt(addr netip.AddrPort) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, member := range m.members {
		if member.Status == Alive && member.Address == addr {
			return true
		}
	}
	return false
}

// admission decides who may become a member, whoever announces it: one who speaks the versions of memberlist's protocol and of serf's (its
// delegate) that we speak.
type admission struct{ protocol, delegate uint8 }

// NotifyMerge refuses what no peer says of itself. One such member in the list would be passed on with it, and whoever joins would turn
// away from the whole cluster: memberlist makes sure first that it speaks with all members, also with those that are dead. Messages
// without versions memberlist refuses by itself when somebody is there to ask.
func (a admission) NotifyMerge(members []*serf.Member) error {
	for _, m := range members {
		switch {
		case m.Port == 0:
			return fmt.Errorf("%q has no port", m.Name)
		case m.ProtocolCur != a.protocol || m.ProtocolMin > a.protocol || m.ProtocolMax < a.protocol,
			m.DelegateCur != a.delegate || m.DelegateMin > a.delegate || m.DelegateMax < a.delegate:
			return fmt.Errorf("%q speaks versions %d and %d of the gossip, not %d and %d", m.Name, m.ProtocolCur, m.DelegateCur, a.protocol, a.delegate)
		}
	}
	return nil
}
