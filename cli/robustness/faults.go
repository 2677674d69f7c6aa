package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"shoal/cli/lab"
	"shoal/sim/clients"
)

// faultKind is one way to hurt a cluster.
type faultKind struct {
	// help says what it does, for people.
	help string
	// spread is whom it concerns at once.
	spread spread
	// gentle says that clients must not suffer though all peers are concerned.
	gentle bool
	// do hurts, waits until the planned end, and heals. Its error is about the harness, not the cluster.
	do func(ctx context.Context, n *nemesis, p planned) error
}

// faultKinds are all of them, by name. It is filled in init, because planning reads it and the faults plan nothing.
var faultKinds = map[string]faultKind{
	"kill":       {help: "kill -9 of the peer's process; containers go on", do: kill},
	"crash":      {help: "kill -9 of everything on the host", do: crash},
	"power":      {help: "power loss: what was not synced to the disk is gone", do: losePower},
	"disk-error": {help: "every write and fsync fails with EIO, until the disk is replaced by what was synced", do: breakDisk},
	"disk-full":  {help: "no room on the disk", do: fillDisk},
	"pause":      {help: "SIGSTOP, then SIGCONT", do: pause},
	"slow":       {help: "a small share of one processor", do: slow},
	"isolate":    {help: "no packet to or from all others", do: isolate},
	"halves":     {help: "no packet between two halves", spread: half, do: isolate},
	"oneway":     {help: "no packet to the others, or none from them", do: oneWay},
	"flap":       {help: "isolated and not, several times", do: flap},
	"loss":       {help: "lost packets everywhere, 2 to 30 of 100", spread: all, do: lose},
	"shaky":      {help: "packets come late, in another order, twice, or not at all", do: shake},
	"clock":      {help: "the clock jumps by seconds or hours, forward or back", do: jump},
	"bit-flip":   {help: "kill -9, and one bit at the end of the log is another one", do: flipBit},
	"raft-panic": {help: "a message that breaks a raft invariant of one shard's replica", do: panicRaft},
	"thin":       {help: "a line of 30 to 200 KB/s, which delays and loses", do: thin},
	"restart":    {help: "a planned restart", do: restart},
	"roll":       {help: "a planned restart of all peers, one after another", spread: all, gentle: true, do: roll},
}

// faultNames lists all kinds in order.
func faultNames() []string { return slices.Sorted(maps.Keys(faultKinds)) }

func kill(ctx context.Context, n *nemesis, p planned) error {
	victim := n.hosts[p.peers[0]]
	return errors.Join(victim.down((*lab.Peer).KillProcess), n.hold(ctx, p), victim.up())
}

func crash(ctx context.Context, n *nemesis, p planned) error {
	victim := n.hosts[p.peers[0]]
	return errors.Join(victim.down((*lab.Peer).Kill), n.hold(ctx, p), victim.up())
}

func losePower(ctx context.Context, n *nemesis, p planned) error {
	victim := n.hosts[p.peers[0]]
	err := victim.down(func(peer *lab.Peer) error { return errors.Join(peer.BreakDisk(), peer.Kill()) })
	return errors.Join(err, n.hold(ctx, p), victim.down((*lab.Peer).RepairDisk), victim.up())
}

// breakDisk leaves the process alone with a disk that fails. It may end, and is then started again and again, as an init system would.
func breakDisk(ctx context.Context, n *nemesis, p planned) error {
	victim := n.hosts[p.peers[0]]
	victim.excuse(true)
	defer victim.excuse(false)
	err := errors.Join((*lab.Peer).BreakDisk(victim.peer), n.hold(ctx, p))
	return errors.Join(err, victim.down((*lab.Peer).Kill), victim.down((*lab.Peer).RepairDisk), victim.up())
}

func fillDisk(ctx context.Context, n *nemesis, p planned) error {
	victim := n.hosts[p.peers[0]]
	victim.excuse(true)
	defer victim.excuse(false)
	err := errors.Join(victim.peer.FillDisk(), n.hold(ctx, p), victim.peer.FreeDisk())
	return errors.Join(err, victim.awaitUp(ctx))
}

func pause(ctx context.Context, n *nemesis, p planned) error {
	victim := n.hosts[p.peers[0]]
	return errors.Join(victim.peer.Pause(), n.hold(ctx, p), victim.peer.Resume())
}

func slow(ctx context.Context, n *nemesis, p planned) error {
	victim := n.hosts[p.peers[0]]
	return errors.Join(victim.peer.Slow(0.05+p.degree*0.2), n.hold(ctx, p), victim.peer.Slow(0))
}

func isolate(ctx context.Context, n *nemesis, p planned) error {
	return errors.Join(n.trouble(p, n.between(p, true, true)), n.hold(ctx, p), n.trouble(p, nil))
}

func oneWay(ctx context.Context, n *nemesis, p planned) error {
	out := p.degree < 0.5
	return errors.Join(n.trouble(p, n.between(p, out, !out)), n.hold(ctx, p), n.trouble(p, nil))
}

// flap changes its mind 0.2 to 1.2 s after the last time.
func flap(ctx context.Context, n *nemesis, p planned) error {
	period := time.Duration(200+1000*p.degree) * time.Millisecond
	var failed error
	for cut := true; ctx.Err() == nil && n.left(p) > 0; cut = !cut {
		var paths []lab.Path
		if cut {
			paths = n.between(p, true, true)
		}
		failed = errors.Join(failed, n.trouble(p, paths))
		clients.Sleep(ctx, min(period, n.left(p)))
	}
	return errors.Join(failed, n.trouble(p, nil))
}

func lose(ctx context.Context, n *nemesis, p planned) error {
	var paths []lab.Path
	for _, from := range n.hosts {
		for _, to := range n.hosts {
			if from != to {
				paths = append(paths, lab.Path{From: from.peer, To: to.peer, Loss: 0.02 + 0.28*p.degree})
			}
		}
	}
	return errors.Join(n.trouble(p, paths), n.hold(ctx, p), n.trouble(p, nil))
}

func thin(ctx context.Context, n *nemesis, p planned) error {
	victim := n.hosts[p.peers[0]].peer
	return errors.Join(n.lab.Throttle(victim, uint64(30e3+170e3*p.degree)), n.hold(ctx, p), n.lab.Throttle(victim, 0))
}

// shake delays packets by up to a tenth of a second, those behind overtake them, and some come twice.
func shake(ctx context.Context, n *nemesis, p planned) error {
	victim := n.hosts[p.peers[0]].peer
	line := lab.Line{
		Delay: time.Duration(p.degree*20) * time.Millisecond, Jitter: time.Duration(1+p.degree*80) * time.Millisecond,
		Double: 0.02 + 0.2*p.degree, Loss: 0.02 * p.degree,
	}
	return errors.Join(n.lab.Shake(victim, line), n.hold(ctx, p), n.lab.Shake(victim, lab.Line{}))
}

// jump sets a clock between three seconds and six hours off; the degree decides in which direction too.
func jump(ctx context.Context, n *nemesis, p planned) error {
	victim := n.hosts[p.peers[0]].peer
	far := 2*p.degree - 1 // -1 to 1
	ahead := time.Duration(far*far*far*float64(6*time.Hour)) + 3*time.Second
	if far < 0 {
		ahead -= 6 * time.Second
	}
	return errors.Join(victim.SetClock(ahead), n.hold(ctx, p), victim.SetClock(0))
}

// flipBit damages what a killed peer wrote last, acknowledged or not. It must find out and get what it lacks from the others, which works as
// long as these are a majority: so it is the same peer each time, and any other is only killed. Damage that belongs to no one replica keeps
// the peer down: then its store is moved away, as it asks for.
func flipBit(ctx context.Context, n *nemesis, p planned) error {
	victim := n.hosts[p.peers[0]]
	victim.excuse(true)
	defer victim.excuse(false)
	damage := func(peer *lab.Peer) error {
		if err := peer.KillProcess(); err != nil {
			return err
		}
		if n.mayDamage(victim) {
			return peer.FlipBit(p.degree)
		}
		return nil
	}
	return errors.Join(victim.down(damage), n.hold(ctx, p), victim.up(), victim.awaitRepaired(ctx))
}

func restart(ctx context.Context, n *nemesis, p planned) error {
	return n.hosts[p.peers[0]].restart(ctx)
}

func roll(ctx context.Context, n *nemesis, p planned) error {
	for _, peer := range p.peers {
		if err := n.hosts[peer].restart(ctx); err != nil {
			return err
		}
		if err := n.hosts[peer].awaitUp(ctx); err != nil {
			return err
		}
	}
	return nil
}
