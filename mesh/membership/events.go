package membership

import (
	"context"
	"net/netip"
	"sync"

	"github.com/hashicorp/serf/serf"
)

// Status is what gossip believes of a peer.
type Status int

// The states of a member.
const (
	Alive  Status = iota + 1 // answers, or has not been proved silent
	Failed                   // stopped answering; kept for a day, in case it comes back
	Left                     // said goodbye
)

func (s Status) String() string {
	switch s {
	case Alive:
		return "alive"
	case Failed:
		return "failed"
	case Left:
		return "left"
	}
	return "unknown"
}

// Member is one peer as gossip knows it.
type Member struct {
	PeerID  string
	Name    string
	Address netip.AddrPort
	Tags    Tags
	Status  Status
}

// EventKind says what happened to a member.
type EventKind int

// What can happen to a member: it appeared or came back, stopped answering, said goodbye, or changed tags or address.
const (
	EventJoined EventKind = iota + 1
	EventFailed
	EventLeft
	EventUpdated
)

func (k EventKind) String() string {
	switch k {
	case EventJoined:
		return "joined"
	case EventFailed:
		return "failed"
	case EventLeft:
		return "left"
	case EventUpdated:
		return "updated"
	}
	return "unknown"
}

// Event is one change of a member.
type Event struct {
	Kind   EventKind
	Member Member
}

// Subscribe returns the changes from now on, preceded by an EventJoined for every live member, this peer included, so
// that nothing is missed in between. A slow reader delays nobody: its events queue up. The channel is closed when ctx
// ends or gossip stops.
func (m *Membership) Subscribe(ctx context.Context) <-chan Event {
	s := &subscriber{wake: make(chan struct{}, 1)}
	m.mu.Lock()
	for _, member := range m.members {
		if member.Status == Alive {
			s.push(Event{Kind: EventJoined, Member: member})
		}
	}
	m.subscribers[s] = struct{}{}
	m.mu.Unlock()

	out := make(chan Event)
	go func() {
		defer close(out)
		defer func() {
			m.mu.Lock()
			delete(m.subscribers, s)
			m.mu.Unlock()
		}()
		s.pump(ctx, m.Done(), out)
	}()
	return out
}

// follow keeps the members' table in step with serf and feeds the subscribers, until serf stops.
func (m *Membership) follow(events <-chan serf.Event) {
	for {
		select {
		case <-m.serf.ShutdownCh():
			return
		case e := <-events:
			if change, ok := e.(serf.MemberEvent); ok {
				m.apply(change)
			}
		}
	}
}

func (m *Membership) apply(change serf.MemberEvent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, changed := range change.Members {
		member := decodeMember(changed)
		var kind EventKind
		switch change.Type {
		case serf.EventMemberJoin:
			kind, member.Status = EventJoined, Alive
		case serf.EventMemberUpdate:
			kind = EventUpdated
		case serf.EventMemberFailed:
			kind, member.Status = EventFailed, Failed
		case serf.EventMemberLeave, serf.EventMemberReap:
			kind, member.Status = EventLeft, Left
		default:
			continue
		}
		m.alive = nil
		before, known := m.members[member.PeerID]
		news := false
		if change.Type == serf.EventMemberReap {
			delete(m.members, member.PeerID)
			news = known && before.Status != Left // whoever left has been announced before
		} else {
			m.members[member.PeerID] = member
			news = !known || before != member
		}
		if news {
			for s := range m.subscribers {
				s.push(Event{Kind: kind, Member: member})
			}
		}
	}
}

// subscriber is an unbounded queue between gossip, which must not wait, and one reader.
type subscriber struct {
	mu    sync.Mutex
	queue []Event
	wake  chan struct{}
}

func (s *subscriber) push(e Event) {
	s.mu.Lock()
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscriber) pump(ctx context.Context, done <-chan struct{}, out chan<- Event) {
	for {
		s.mu.Lock()
		batch := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, e := range batch {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			case <-done:
				return
			}
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		case <-done:
			return
		}
	}
}

func decodeMember(s serf.Member) Member {
	addr, _ := netip.AddrFromSlice(s.Addr) // an invalid address stays invalid: Address says "unknown"
	m := Member{PeerID: s.Name, Name: s.Tags[tagName], Tags: decodeTags(s.Tags)}
	if addr.IsValid() {
		m.Address = netip.AddrPortFrom(addr.Unmap(), s.Port)
	}
	switch s.Status {
	case serf.StatusAlive, serf.StatusLeaving:
		m.Status = Alive
	case serf.StatusLeft:
		m.Status = Left
	default:
		m.Status = Failed
	}
	return m
}
