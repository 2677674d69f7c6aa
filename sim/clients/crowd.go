package clients

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/sim/history"
)

// auditLimit bounds the watches that read everything again at the end.
const auditLimit = 10 * time.Second

// firstWatcher is the number of the first watcher; clients that work are numbered from 1.
const firstWatcher = 1000

// Crowd is everybody who takes part in one recording, in namespaces of its own.
type Crowd struct {
	Recorder *Recorder
	// Seed is of all that is drawn; Stretch tells recordings of the same seed apart.
	Seed    uint64
	Stretch uint64
	// Connect opens connections to all peers for one client, always in the same order.
	Connect func(client int) ([]*API, error)
	// Prefix begins the names of the Namespaces and of no others; Objects is over how many names per namespace and resource they work.
	Prefix     string
	Namespaces []string
	Objects    int
	// Pause is the least time from the beginning of one operation of a client to that of its next.
	Pause time.Duration
}

// Name gives the crowd n namespaces.
func (c *Crowd) Name(n int) {
	for i := range n {
		c.Namespaces = append(c.Namespaces, fmt.Sprintf("%s%d", c.Prefix, i))
	}
}

// MakeNamespaces creates the namespaces, through the peers in turn.
func (c *Crowd) MakeNamespaces(ctx context.Context, apis []*API) error {
	for i, name := range c.Namespaces {
		body := map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": metav1.ObjectMeta{Name: name}}
		if _, err := apis[i%len(apis)].Do(ctx, http.MethodPost, "/api/v1/namespaces", body); err != nil {
			return fmt.Errorf("creating namespace %s: %w", name, err)
		}
	}
	return nil
}

// chance is a source of chance for one client, the same for the same seed.
func (c *Crowd) chance(client int) *rand.Rand {
	return rand.New(rand.NewPCG(c.Seed, c.Stretch<<32|uint64(client)))
}

// Client is one who does what its habit says, at most one operation at a time.
func (c *Crowd) Client(id int, habit Habit) (*Client, error) {
	apis, err := c.Connect(id)
	if err != nil {
		return nil, err
	}
	return &Client{
		id: id, habit: habit, chance: c.chance(id), recorder: c.Recorder, apis: apis, favourite: id % len(apis), namespaces: c.Namespaces,
		prefix: c.Prefix, names: c.Objects, pause: c.Pause, known: map[string]history.Object{},
	}, nil
}

// Work lets clients with the given habits, numbered from 1, work until ctx ends.
func (c *Crowd) Work(ctx context.Context, running *sync.WaitGroup, habits []Habit) error {
	for i, habit := range habits {
		client, err := c.Client(1+i, habit)
		if err != nil {
			return err
		}
		running.Go(func() {
			defer client.Close()
			client.run(ctx)
		})
	}
	return nil
}

// Watch lets watchers work until ctx ends: of every resource as many over all namespaces as are asked for, and one of a single namespace.
func (c *Crowd) Watch(ctx context.Context, running *sync.WaitGroup, wide int) error {
	for i := range resources {
		for n := range wide + 1 {
			id := firstWatcher + 10*i + n
			apis, err := c.Connect(id)
			if err != nil {
				return err
			}
			w := &watcher{id: id, chance: c.chance(id), recorder: c.Recorder, apis: apis, resource: &resources[i], prefix: c.Prefix}
			if n == wide {
				w.namespace = c.Namespaces[i%len(c.Namespaces)]
			}
			running.Go(func() {
				defer closeAll(apis)
				w.run(ctx)
			})
		}
	}
	return nil
}

func closeAll(apis []*API) {
	for _, a := range apis {
		a.Close()
	}
}

// Base is a revision before every write of the crowd.
func (c *Crowd) Base(ctx context.Context, reader *Client) (int64, error) {
	base := &history.Operation{Kind: history.List, Outcome: history.OK}
	if err := reader.listAt(ctx, 0, base, &resources[0], "", url.Values{}); err != nil {
		return 0, fmt.Errorf("the first list: %w", err)
	}
	return base.ListRevision, nil
}

// Answers asks every peer for every namespace's objects, and for all of them at once. The error says who does not answer.
func (c *Crowd) Answers(ctx context.Context, reader *Client) error {
	for at := range reader.apis {
		for i := range resources {
			for _, namespace := range append([]string{""}, c.Namespaces...) {
				op := &history.Operation{Kind: history.List, Outcome: history.OK}
				err := reader.listAt(ctx, at, op, &resources[i], namespace, url.Values{})
				c.Recorder.operation(*op)
				if err != nil {
					return fmt.Errorf("%s of %q through %s: %w", resources[i].name, namespace, reader.apis[at].peer, err)
				}
			}
		}
	}
	return nil
}

// Finish reads everything through every peer, after all else, and returns the highest revision that was shown.
func (c *Crowd) Finish(ctx context.Context, reader *Client) int64 {
	var highest int64
	for at := range reader.apis {
		for i := range resources {
			for _, namespace := range append([]string{""}, c.Namespaces...) {
				op := &history.Operation{Kind: history.List, Outcome: history.OK, Final: true}
				// The cluster has converged, so an error here is for the checkers to see as a final read that is missing.
				_ = reader.listAt(ctx, at, op, &resources[i], namespace, url.Values{})
				c.Recorder.operation(*op)
				highest = max(highest, op.ListRevision)
			}
			for _, namespace := range c.Namespaces {
				for n := range c.Objects {
					name := fmt.Sprint(namePrefix, n)
					op := &history.Operation{Kind: history.Get, Outcome: history.OK, Final: true, Key: resources[i].key(namespace, name)}
					_ = reader.getAt(ctx, at, op, &resources[i], namespace, name, url.Values{})
					c.Recorder.operation(*op)
				}
			}
		}
	}
	return highest
}

// Audit reads all changes since a revision again, through every peer.
func (c *Crowd) Audit(ctx context.Context, reader *Client, from, through int64) {
	var audits sync.WaitGroup
	for at := range reader.apis {
		for i := range resources {
			w := &watcher{id: 2 * firstWatcher, chance: c.chance(2 * firstWatcher), recorder: c.Recorder, apis: reader.apis, resource: &resources[i], prefix: c.Prefix}
			w.id += i
			audits.Go(func() {
				w.open(ctx, at, from, auditLimit, func(event history.Event) bool { return event.Object.Revision >= through })
			})
		}
	}
	audits.Wait()
}

// Remove deletes the namespaces.
func (c *Crowd) Remove(ctx context.Context, apis []*API) []error {
	var failed []error
	for _, name := range c.Namespaces {
		if _, err := apis[0].Do(ctx, http.MethodDelete, "/api/v1/namespaces/"+name, nil); err != nil {
			failed = append(failed, fmt.Errorf("removing namespace %s: %w", name, err))
		}
	}
	return failed
}
