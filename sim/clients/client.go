package clients

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/sim/history"
)

// Client does one operation after another, on its favourite peer as long as that answers.
type Client struct {
	id         int
	habit      Habit
	chance     *rand.Rand
	recorder   *Recorder
	apis       []*API
	favourite  int
	namespaces []string
	// prefix is that of all the namespaces.
	prefix string
	names  int
	// pause is the least time from one operation's beginning to the next's.
	pause time.Duration

	// seen is the highest revision that this client was told, recent some of the last, and known its last version of each object.
	seen   int64
	recent []int64
	known  map[string]history.Object
}

// Close ends the client's connections.
func (c *Client) Close() { closeAll(c.apis) }

// Only is the same client, who asks no others than the named peers.
func (c *Client) Only(peers []string) *Client {
	only := *c
	only.favourite = 0
	only.apis = slices.DeleteFunc(slices.Clone(c.apis), func(a *API) bool { return !slices.Contains(peers, a.peer) })
	return &only
}

// run works until the context ends.
func (c *Client) run(ctx context.Context) {
	for ctx.Err() == nil {
		begun := time.Now()
		c.step(ctx)
		Sleep(ctx, c.pause-time.Since(begun))
	}
}

// Sleep waits for d, or until ctx ends; not at all if d is not positive.
func Sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// step does one operation.
func (c *Client) step(ctx context.Context) {
	r := &resources[c.chance.IntN(len(resources))]
	namespace := c.namespaces[c.chance.IntN(len(c.namespaces))]
	name := namePrefix + strconv.Itoa(c.chance.IntN(c.names))
	at := c.favourite
	if c.chance.IntN(10) == 0 {
		at = c.chance.IntN(len(c.apis))
	}
	op := &history.Operation{Client: c.id, Key: r.key(namespace, name), Outcome: history.OK}
	var err error
	switch op.Kind = c.habit.draw(c.chance); op.Kind {
	case history.Get:
		err = c.get(ctx, at, op, r, namespace, name)
	case history.List:
		err = c.list(ctx, at, op, r, namespace)
	case history.Create:
		err = c.write(ctx, at, op, r, namespace, name)
	case history.Update:
		err = c.update(ctx, at, op, r, namespace, name)
	case history.Delete:
		if known, ok := c.known[op.Key]; ok && c.chance.IntN(2) == 0 {
			op.Precondition = known.Revision
		}
		err = c.delete(ctx, at, op, r, namespace, name)
	}
	c.learn(op)
	c.recorder.operation(*op)
	if err != nil && op.Failure != history.Exists && op.Failure != history.Absent && op.Failure != history.Conflict {
		// The next peer may answer; not at once, or a refusing cluster is asked thousands of times a second.
		c.favourite = (at + 1) % len(c.apis)
		Sleep(ctx, time.Duration(50+c.chance.IntN(150))*time.Millisecond)
	}
}

// ask times a request and notes what came of it.
func (c *Client) ask(ctx context.Context, at int, op *history.Operation, method, path string, body any) ([]byte, error) {
	op.ID, op.Peer = c.recorder.id(), c.apis[at].peer
	op.Invoke = c.recorder.Now()
	// What is under way when the run ends is waited for: its outcome is worth more than a second.
	answer, err := c.apis[at].Do(context.WithoutCancel(ctx), method, path, body)
	op.Return = c.recorder.Now()
	if err != nil {
		judge(op, err)
	}
	return answer, err
}

// learn remembers what an operation told.
func (c *Client) learn(op *history.Operation) {
	if op.Outcome == history.Failed && op.Failure == history.Absent || op.Kind == history.Delete && op.Outcome == history.OK {
		delete(c.known, op.Key)
	}
	if op.Outcome != history.OK {
		if op.Failure == history.Conflict {
			delete(c.known, op.Key)
		}
		return
	}
	if op.Object != nil {
		c.note(op.Object.Revision)
		if op.Consistency == history.Linearizable {
			c.known[op.Key] = *op.Object
		}
	}
	c.note(op.ListRevision)
}

func (c *Client) note(revision int64) {
	if revision == 0 {
		return
	}
	c.seen = max(c.seen, revision)
	if c.recent = append(c.recent, revision); len(c.recent) > 40 {
		c.recent = c.recent[1:]
	}
}

func (c *Client) get(ctx context.Context, at int, op *history.Operation, r *resource, namespace, name string) error {
	return c.getAt(ctx, at, op, r, namespace, name, c.freshness(op))
}

// getAt reads one object.
func (c *Client) getAt(ctx context.Context, at int, op *history.Operation, r *resource, namespace, name string, query url.Values) error {
	answer, err := c.ask(ctx, at, op, http.MethodGet, r.path(namespace, name)+"?"+query.Encode(), nil)
	if err == nil {
		op.Object, err = r.object(answer, c.prefix)
	}
	if op.Failure == history.Absent {
		op.Outcome, op.Failure, op.Error, err = history.OK, "", "", nil // that is an answer
	}
	return c.readable(op, err)
}

// readable notes an answer that was no answer.
func (c *Client) readable(op *history.Operation, err error) error {
	if err != nil && op.Outcome == history.OK {
		op.Outcome, op.Error = history.Unknown, err.Error()
	}
	return err
}

func (c *Client) list(ctx context.Context, at int, op *history.Operation, r *resource, namespace string) error {
	if c.chance.IntN(2) == 0 {
		namespace = ""
	}
	return c.listAt(ctx, at, op, r, namespace, c.freshness(op))
}

// listAt lists a namespace, or all for "".
func (c *Client) listAt(ctx context.Context, at int, op *history.Operation, r *resource, namespace string, query url.Values) error {
	op.Key = r.name + "/"
	if namespace != "" {
		op.Key += namespace + "/"
	}
	answer, err := c.ask(ctx, at, op, http.MethodGet, r.path(namespace, "")+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	var list struct {
		Metadata metav1.ListMeta   `json:"metadata"`
		Items    []json.RawMessage `json:"items"`
	}
	err = json.Unmarshal(answer, &list)
	if err == nil {
		op.ListRevision, err = parseRevision(list.Metadata.ResourceVersion)
	}
	for _, item := range list.Items {
		var object *history.Object
		if object, err = r.object(item, c.prefix); err != nil {
			break
		}
		if object != nil {
			op.Items = append(op.Items, *object)
		}
	}
	return c.readable(op, err)
}

// update changes what it knows, guarded mostly; of what it knows nothing it reads first.
func (c *Client) update(ctx context.Context, at int, op *history.Operation, r *resource, namespace, name string) error {
	if c.chance.IntN(4) != 0 {
		known, ok := c.known[op.Key]
		if !ok {
			op.Kind = history.Get
			return c.get(ctx, at, op, r, namespace, name)
		}
		op.Precondition = known.Revision
	}
	return c.write(ctx, at, op, r, namespace, name)
}

func (c *Client) write(ctx context.Context, at int, op *history.Operation, r *resource, namespace, name string) error {
	op.Value = c.recorder.value(c.id)
	meta := metav1.ObjectMeta{Namespace: namespace, Name: name}
	method, path := http.MethodPost, r.path(namespace, "")
	if op.Kind == history.Update {
		method, path = http.MethodPut, r.path(namespace, name)
		if op.Precondition != 0 {
			meta.ResourceVersion = strconv.FormatInt(op.Precondition, 10)
		}
	}
	answer, err := c.ask(ctx, at, op, method, path, r.encode(meta, op.Value))
	if err != nil {
		return err
	}
	if op.Object, err = r.object(answer, c.prefix); err == nil && op.Object == nil {
		err = fmt.Errorf("the answer is another object: %s", answer)
	}
	return c.readable(op, err)
}

func (c *Client) delete(ctx context.Context, at int, op *history.Operation, r *resource, namespace, name string) error {
	options := metav1.DeleteOptions{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"}}
	if op.Precondition != 0 {
		revision := strconv.FormatInt(op.Precondition, 10)
		options.Preconditions = &metav1.Preconditions{ResourceVersion: &revision}
	}
	answer, err := c.ask(ctx, at, op, http.MethodDelete, r.path(namespace, name), options)
	if err != nil {
		return err
	}
	var status struct {
		Details struct {
			UID types.UID `json:"uid"`
		} `json:"details"`
	}
	if err = json.Unmarshal(answer, &status); err == nil {
		op.Deleted = string(status.Details.UID)
	}
	return c.readable(op, err)
}
