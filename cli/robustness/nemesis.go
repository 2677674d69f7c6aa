package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"shoal/cli/lab"
	"shoal/sim/clients"
	"shoal/sim/history"
)

const (
	// stopLimit is how long a planned stop may take, startLimit how long a peer may need to be ready again on a busy machine.
	stopLimit  = time.Minute
	startLimit = 2 * time.Minute
	// superviseEvery is how often the peers' processes are looked after.
	superviseEvery = 200 * time.Millisecond
)

// nemesis carries a plan out, and looks after the peers' processes as an init system would.
type nemesis struct {
	lab      *lab.Lab
	recorder *clients.Recorder
	hosts    []*host
	began    time.Time
	say      func(format string, args ...any)

	lock    sync.Mutex
	paths   map[string][]lab.Path // of the faults under way
	damaged *host                 // whose disk lies; there is at most one
	broken  map[replicaOf]int     // how often raft invariants of a replica were broken
}

// host is a peer with what is wanted of its process.
type host struct {
	peer *lab.Peer
	say  func(format string, args ...any)

	lock    sync.Mutex
	wanted  bool // that the process runs
	excused bool // when it ends by itself
	crashes []crashed
}

// crashed is an end that nobody asked for.
type crashed struct {
	at    time.Time
	words string
}

func newNemesis(l *lab.Lab, say func(format string, args ...any)) *nemesis {
	n := &nemesis{lab: l, say: say, paths: map[string][]lab.Path{}, broken: map[replicaOf]int{}}
	for _, peer := range l.Peers {
		n.hosts = append(n.hosts, &host{peer: peer, wanted: true, say: say})
	}
	return n
}

// names are the peers' names.
func (n *nemesis) names() []string {
	var names []string
	for _, h := range n.hosts {
		names = append(names, h.peer.Name)
	}
	return names
}

// run carries out the plan and returns when the last fault has been healed. Its error is about the harness.
func (n *nemesis) run(ctx context.Context, recorder *clients.Recorder, faults []planned) error {
	n.recorder, n.began = recorder, time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range faults {
		group.Go(func() error {
			clients.Sleep(ctx, p.begin-time.Since(n.began))
			if ctx.Err() != nil {
				return nil
			}
			record := p.record(n.names())
			n.say("%6.1f s  %s", recorder.Now().Seconds(), record.What)
			record.Begin = recorder.Now()
			err := faultKinds[p.kind].do(ctx, n, p)
			record.End = recorder.Now()
			recorder.Fault(record)
			if err != nil {
				return fmt.Errorf("%s: %w", record.What, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// hold waits for the planned end of a fault.
func (n *nemesis) hold(ctx context.Context, p planned) error {
	clients.Sleep(ctx, n.left(p))
	return nil
}

func (n *nemesis) left(p planned) time.Duration { return p.end - time.Since(n.began) }

// between are the paths from the concerned peers to the others, and back.
func (n *nemesis) between(p planned, out, in bool) []lab.Path {
	var paths []lab.Path
	for i, a := range n.hosts {
		for j, b := range n.hosts {
			if slices.Contains(p.peers, i) && !slices.Contains(p.peers, j) {
				if out {
					paths = append(paths, lab.Path{From: a.peer, To: b.peer, Loss: 1})
				}
				if in {
					paths = append(paths, lab.Path{From: b.peer, To: a.peer, Loss: 1})
				}
			}
		}
	}
	return paths
}

// trouble makes these the disturbed paths of one fault; those of others stay.
func (n *nemesis) trouble(p planned, paths []lab.Path) error {
	n.lock.Lock()
	defer n.lock.Unlock()
	n.paths[fmt.Sprint(p.kind, p.begin)] = paths
	var together []lab.Path
	for _, some := range n.paths {
		together = append(together, some...)
	}
	return n.lab.Trouble(together...)
}

// mayDamage tells whether a peer's log may be damaged: the first that is asked for, and no other.
func (n *nemesis) mayDamage(h *host) bool {
	n.lock.Lock()
	defer n.lock.Unlock()
	if n.damaged == nil {
		n.damaged = h
	}
	return n.damaged == h
}

// heal undoes what a failed or interrupted plan may have left, and waits until every peer is ready.
func (n *nemesis) heal(ctx context.Context) error {
	n.lock.Lock()
	clear(n.paths)
	err := n.lab.Trouble()
	n.lock.Unlock()
	for _, h := range n.hosts {
		err = errors.Join(err, n.lab.Throttle(h.peer, 0), n.lab.Shake(h.peer, lab.Line{}), h.peer.SetClock(0), h.awaitUp(ctx))
	}
	return err
}

// supervise starts peers that ended by themselves, until the context ends.
func (n *nemesis) supervise(ctx context.Context) {
	for ctx.Err() == nil {
		for _, h := range n.hosts {
			h.look()
		}
		clients.Sleep(ctx, superviseEvery)
	}
}

// look starts the process again if it ended though it is wanted, and remembers what it said last.
func (h *host) look() {
	h.lock.Lock()
	defer h.lock.Unlock()
	if !h.wanted || h.peer.Pid() != 0 {
		return
	}
	words := h.lastWords()
	if !h.excused {
		h.crashes = append(h.crashes, crashed{at: time.Now(), words: words})
		h.say("          %s ENDED BY ITSELF: %s", h.peer.Name, words)
	}
	if err := h.peer.Start(); err != nil {
		h.say("          %s cannot be started: %v", h.peer.Name, err)
	}
}

// lastWords are the lines with which the process ended: from the first of a panic or fatal error on, or the last few.
func (h *host) lastWords() string {
	text, err := os.ReadFile(h.peer.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text[max(0, len(text)-200_000):])), "\n")
	from := max(0, len(lines)-5)
	for i, line := range lines[max(0, len(lines)-2000):] {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") {
			from = max(0, len(lines)-2000) + max(0, i-3)
		}
	}
	return strings.Join(lines[from:min(len(lines), from+40)], "\n")
}

// down ends the process with what else is to be done while it is down.
func (h *host) down(do func(*lab.Peer) error) error {
	h.lock.Lock()
	defer h.lock.Unlock()
	h.wanted = false
	return do(h.peer)
}

// up starts the process.
func (h *host) up() error {
	h.lock.Lock()
	defer h.lock.Unlock()
	h.wanted = true
	if h.peer.Pid() != 0 {
		return nil
	}
	return h.peer.Start()
}

// restart is a planned one.
func (h *host) restart(ctx context.Context) error {
	err := h.down(func(peer *lab.Peer) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		return peer.Stop(ctx)
	})
	return errors.Join(err, h.up())
}

func (h *host) excuse(yes bool) {
	h.lock.Lock()
	defer h.lock.Unlock()
	h.excused = yes
}

// awaitUp waits until the peer is ready, over ends of its process.
func (h *host) awaitUp(ctx context.Context) error {
	return h.awaitAfter(ctx, func(error) error { return nil })
}

// awaitRepaired is awaitUp for a peer whose log was damaged: if it says that its store cannot be read, the store is moved away.
func (h *host) awaitRepaired(ctx context.Context) error {
	return h.awaitAfter(ctx, func(ended error) error {
		if !strings.Contains(ended.Error(), "log store is damaged") || !strings.Contains(ended.Error(), "move ") {
			return nil
		}
		return errors.Join(h.down((*lab.Peer).DropStore), h.up())
	})
}

// awaitAfter waits until the peer is ready, and calls mend with each end of its process meanwhile.
func (h *host) awaitAfter(ctx context.Context, mend func(ended error) error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err := h.peer.Await(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err := mend(err); err != nil {
			return err
		}
		clients.Sleep(ctx, superviseEvery)
	}
}

// crashViolations are the ends that nobody asked for since a moment.
func (n *nemesis) crashViolations(recorder *clients.Recorder) []history.Violation {
	var found []history.Violation
	for _, h := range n.hosts {
		h.lock.Lock()
		for _, c := range h.crashes {
			found = append(found, history.Violation{Checker: "crash", At: recorder.At(c.at), Key: h.peer.Name, Message: "the peer ended by itself:\n" + c.words})
		}
		h.crashes = nil
		h.lock.Unlock()
	}
	return found
}
