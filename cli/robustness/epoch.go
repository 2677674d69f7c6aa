package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"shoal/cli/lab"
	"shoal/sim/clients"
	"shoal/sim/history"
)

const (
	// calm is how long clients work before the first and after the last fault.
	calm = 3 * time.Second
	// convergeLimit bounds how long after the last fault every peer must answer again for every namespace.
	convergeLimit = 2 * time.Minute
)

// epoch is a stretch of a run that is recorded and judged by itself, in namespaces of its own.
type epoch struct {
	cfg     Config
	number  int
	lab     *lab.Lab
	nemesis *nemesis
	chance  *rand.Rand
	say     func(format string, args ...any)

	crowd *clients.Crowd
}

// run lets clients work while the faults happen, lets the cluster recover, reads everything, and returns what was recorded together with
// what has already been found wrong. Its error is about the harness.
func (e *epoch) run(ctx context.Context, faults []planned) (*history.History, []history.Violation, error) {
	recorder := clients.NewRecorder(history.Meta{Seed: e.cfg.Seed, Note: fmt.Sprintf("epoch %d of robustness --seed %d --peers %d --clients %d", e.number, e.cfg.Seed, e.cfg.Peers, e.cfg.Clients)})
	e.crowd = &clients.Crowd{
		Recorder: recorder, Seed: uint64(e.cfg.Seed), Stretch: uint64(e.number), Connect: e.apis, Prefix: fmt.Sprintf("robust-%d-", e.number), Objects: e.cfg.Objects,
		Pause: time.Duration(float64(time.Second) * float64(e.cfg.Clients) / float64(e.cfg.Rate)),
	}
	e.crowd.Name(e.cfg.Namespaces)
	apis, err := e.apis(0)
	if err != nil {
		return nil, nil, err
	}
	if err := e.crowd.MakeNamespaces(ctx, apis); err != nil {
		return nil, nil, err
	}
	reader, err := e.crowd.Client(0, clients.Everything)
	if err != nil {
		return nil, nil, err
	}
	base, err := e.crowd.Base(ctx, reader)
	if err != nil {
		return nil, nil, err
	}

	working, stopWork := context.WithCancel(ctx)
	defer stopWork()
	watching, stopWatches := context.WithCancel(ctx)
	defer stopWatches()
	var watchers, workers sync.WaitGroup
	if err := e.crowd.Watch(watching, &watchers, 2); err != nil {
		return nil, nil, err
	}
	clients.Sleep(ctx, time.Second) // the watchers shall be there before the first write
	if err := e.crowd.Work(working, &workers, slices.Repeat([]clients.Habit{clients.Everything}, e.cfg.Clients)); err != nil {
		return nil, nil, err
	}
	clients.Sleep(ctx, calm)
	failed := e.nemesis.run(ctx, recorder, faults)
	failed = errors.Join(failed, e.nemesis.heal(ctx))
	violations := e.converge(ctx, reader)
	clients.Sleep(ctx, calm)
	stopWork()
	workers.Wait()
	if len(violations) == 0 {
		final := e.crowd.Finish(ctx, reader)
		e.crowd.Audit(ctx, reader, base, final)
	}
	stopWatches()
	watchers.Wait()
	violations = append(violations, e.nemesis.crashViolations(recorder)...)
	return recorder.History(), violations, failed
}

// apis are connections to all peers, for one client.
func (e *epoch) apis(client int) ([]*clients.API, error) {
	var apis []*clients.API
	for i, peer := range e.lab.Peers {
		config, err := e.lab.Config(i)
		if err != nil {
			return nil, err
		}
		a, err := clients.NewAPI(peer.Name, config, client%2 == 1)
		if err != nil {
			return nil, err
		}
		apis = append(apis, a)
	}
	return apis, nil
}

// removeNamespaces makes room for the next epoch. What cannot be removed now does no harm.
func (e *epoch) removeNamespaces(ctx context.Context) {
	apis, err := e.apis(0)
	if err != nil {
		return
	}
	for _, err := range e.crowd.Remove(ctx, apis) {
		e.say("          %v", err)
	}
	for _, a := range apis {
		a.Close()
	}
}

// converge waits until every peer answers for everything.
func (e *epoch) converge(ctx context.Context, reader *clients.Client) []history.Violation {
	begun := time.Now()
	var last error
	for time.Since(begun) < convergeLimit && ctx.Err() == nil {
		if last = e.crowd.Answers(ctx, reader); last == nil {
			return nil
		}
		clients.Sleep(ctx, 200*time.Millisecond)
	}
	return []history.Violation{{Checker: "convergence", At: e.crowd.Recorder.Now(), Key: e.crowd.Prefix,
		Message: fmt.Sprintf("%s after the last fault not every peer answers: %v", time.Since(begun).Round(time.Second), last)}}
}
