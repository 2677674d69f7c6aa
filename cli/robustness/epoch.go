package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/cli/lab"
	"shoal/sim/history"
)

const (
	// calm is how long clients work before the first and after the last fault.
	calm = 3 * time.Second
	// convergeLimit bounds how long after the last fault every peer must answer again for every namespace.
	convergeLimit = 2 * time.Minute
	// auditLimit bounds the watches that read everything again at the end.
	auditLimit = 10 * time.Second
)

// epoch is a stretch of a run that is recorded and judged by itself, in namespaces of its own.
type epoch struct {
	cfg     Config
	number  int
	lab     *lab.Lab
	nemesis *nemesis
	chance  *rand.Rand
	say     func(format string, args ...any)

	recorder   *recorder
	prefix     string // of the namespaces' names
	namespaces []string
}

// run lets clients work while the faults happen, lets the cluster recover, reads everything, and returns what was recorded together with
// what has already been found wrong. Its error is about the harness.
func (e *epoch) run(ctx context.Context, faults []planned) (*history.History, []history.Violation, error) {
	e.recorder = newRecorder(history.Meta{Seed: e.cfg.Seed, Note: fmt.Sprintf("epoch %d of robustness --seed %d --peers %d --clients %d", e.number, e.cfg.Seed, e.cfg.Peers, e.cfg.Clients)})
	apis, err := e.apis(0)
	if err != nil {
		return nil, nil, err
	}
	if err := e.makeNamespaces(ctx, apis); err != nil {
		return nil, nil, err
	}
	reader := e.client(0, apis)
	base := &history.Operation{Kind: history.List, Outcome: history.OK}
	if err := reader.listAt(ctx, 0, base, &resources[0], "", url.Values{}); err != nil {
		return nil, nil, fmt.Errorf("the first list: %w", err)
	}

	working, stopWork := context.WithCancel(ctx)
	defer stopWork()
	watching, stopWatches := context.WithCancel(ctx)
	defer stopWatches()
	var watchers, clients sync.WaitGroup
	if err := e.watch(watching, &watchers); err != nil {
		return nil, nil, err
	}
	sleep(ctx, time.Second) // the watchers shall be there before the first write
	if err := e.work(working, &clients); err != nil {
		return nil, nil, err
	}
	sleep(ctx, calm)
	failed := e.nemesis.run(ctx, e.recorder, faults)
	failed = errors.Join(failed, e.nemesis.heal(ctx))
	violations := e.converge(ctx, reader)
	sleep(ctx, calm)
	stopWork()
	clients.Wait()
	if len(violations) == 0 {
		final := e.finish(ctx, reader)
		e.audit(ctx, apis, base.ListRevision, final)
	}
	stopWatches()
	watchers.Wait()
	violations = append(violations, e.nemesis.crashViolations(e.recorder)...)
	return &e.recorder.history, violations, failed
}

// apis are connections to all peers, for one client.
func (e *epoch) apis(client int) ([]*api, error) {
	var apis []*api
	for i, peer := range e.lab.Peers {
		config, err := e.lab.Config(i)
		if err != nil {
			return nil, err
		}
		a, err := newAPI(peer.Name, config, client%2 == 1)
		if err != nil {
			return nil, err
		}
		apis = append(apis, a)
	}
	return apis, nil
}

// chanceOf is a source of chance for one client, the same for the same seed.
func (e *epoch) chanceOf(client int) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(e.cfg.Seed), uint64(e.number)<<32|uint64(client)))
}

func (e *epoch) client(id int, apis []*api) *client {
	return &client{
		id: id, chance: e.chanceOf(id), recorder: e.recorder, apis: apis, favourite: id % len(apis), namespaces: e.namespaces, prefix: e.prefix,
		names: e.cfg.Objects, pause: time.Duration(float64(time.Second) * float64(e.cfg.Clients) / float64(e.cfg.Rate)), known: map[string]history.Object{},
	}
}

func (e *epoch) makeNamespaces(ctx context.Context, apis []*api) error {
	e.prefix = fmt.Sprintf("robust-%d-", e.number)
	for i := range e.cfg.Namespaces {
		name := fmt.Sprintf("%s%d", e.prefix, i)
		e.namespaces = append(e.namespaces, name)
		body := map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": metav1.ObjectMeta{Name: name}}
		if _, err := apis[i%len(apis)].do(ctx, http.MethodPost, "/api/v1/namespaces", body); err != nil {
			return fmt.Errorf("creating namespace %s: %w", name, err)
		}
	}
	return nil
}

// removeNamespaces makes room for the next epoch. What cannot be removed now does no harm.
func (e *epoch) removeNamespaces(ctx context.Context) {
	apis, err := e.apis(0)
	if err != nil {
		return
	}
	for _, name := range e.namespaces {
		if _, err := apis[0].do(ctx, http.MethodDelete, "/api/v1/namespaces/"+name, nil); err != nil {
			e.say("          removing namespace %s: %v", name, err)
		}
	}
	for _, a := range apis {
		a.close()
	}
}

// watch starts the watchers: of every resource two over all namespaces and one of one namespace.
func (e *epoch) watch(ctx context.Context, running *sync.WaitGroup) error {
	for i := range resources {
		for n, namespace := range []string{"", "", e.namespaces[i%len(e.namespaces)]} {
			id := 1000 + 10*i + n
			apis, err := e.apis(id)
			if err != nil {
				return err
			}
			w := &watcher{id: id, chance: e.chanceOf(id), recorder: e.recorder, apis: apis, resource: &resources[i], namespace: namespace, prefix: e.prefix}
			running.Go(func() { w.run(ctx) })
		}
	}
	return nil
}

// work starts the clients.
func (e *epoch) work(ctx context.Context, running *sync.WaitGroup) error {
	for id := 1; id <= e.cfg.Clients; id++ {
		apis, err := e.apis(id)
		if err != nil {
			return err
		}
		c := e.client(id, apis)
		running.Go(func() {
			c.run(ctx)
			for _, a := range apis {
				a.close()
			}
		})
	}
	return nil
}

// converge waits until every peer answers for everything.
func (e *epoch) converge(ctx context.Context, reader *client) []history.Violation {
	begun := time.Now()
	var last error
	for time.Since(begun) < convergeLimit && ctx.Err() == nil {
		if last = e.answers(ctx, reader); last == nil {
			return nil
		}
		sleep(ctx, 200*time.Millisecond)
	}
	return []history.Violation{{Checker: "convergence", At: e.recorder.now(), Key: e.prefix,
		Message: fmt.Sprintf("%s after the last fault not every peer answers: %v", time.Since(begun).Round(time.Second), last)}}
}

// answers asks every peer for every namespace's objects, and all of them at once.
func (e *epoch) answers(ctx context.Context, reader *client) error {
	for at := range reader.apis {
		for i := range resources {
			for _, namespace := range append([]string{""}, e.namespaces...) {
				op := &history.Operation{Kind: history.List, Outcome: history.OK}
				err := reader.listAt(ctx, at, op, &resources[i], namespace, url.Values{})
				e.recorder.operation(*op)
				if err != nil {
					return fmt.Errorf("%s of %q through %s: %w", resources[i].name, namespace, reader.apis[at].peer, err)
				}
			}
		}
	}
	return nil
}

// finish reads everything through every peer, after all else, and returns the highest revision that was shown.
func (e *epoch) finish(ctx context.Context, reader *client) int64 {
	var highest int64
	for at := range reader.apis {
		for i := range resources {
			for _, namespace := range append([]string{""}, e.namespaces...) {
				op := &history.Operation{Kind: history.List, Outcome: history.OK, Final: true}
				// The cluster has converged, so an error here is for the checkers to see as a final read that is missing.
				_ = reader.listAt(ctx, at, op, &resources[i], namespace, url.Values{})
				e.recorder.operation(*op)
				highest = max(highest, op.ListRevision)
			}
			for _, namespace := range e.namespaces {
				for n := range e.cfg.Objects {
					name := fmt.Sprint(namePrefix, n)
					op := &history.Operation{Kind: history.Get, Outcome: history.OK, Final: true, Key: resources[i].key(namespace, name)}
					_ = reader.getAt(ctx, at, op, &resources[i], namespace, name, url.Values{})
					e.recorder.operation(*op)
				}
			}
		}
	}
	return highest
}

// audit reads all changes since the beginning again, through every peer.
func (e *epoch) audit(ctx context.Context, apis []*api, from, through int64) {
	var audits sync.WaitGroup
	for at := range apis {
		for i := range resources {
			w := &watcher{id: 2000 + i, chance: e.chanceOf(2000), recorder: e.recorder, apis: apis, resource: &resources[i], prefix: e.prefix}
			audits.Go(func() {
				w.open(ctx, at, from, auditLimit, func(event history.Event) bool { return event.Object.Revision >= through })
			})
		}
	}
	audits.Wait()
}
