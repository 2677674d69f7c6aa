package storage

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"math"
	"sort"
	"strconv"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus"
	"shoal/consensus/merge"
	"shoal/consensus/store"
)

const (
	// smallHistory is the history of a cluster that tests compact, and recordCost
	// what the store counts for a record beside its superseded value.
	smallHistory = 1 << 20
	recordCost   = 192
	// fillerKey takes up history; writes to it are not numbered, its deletion is.
	fillerKey = "/filler"
	touchKey  = "/touched"
)

// compact is upstream's Compaction: the history of the revision's shard is filled
// until everything up to the revision has fallen out, and nothing after it.
func (p *pods) compact(ctx context.Context, t *testing.T, resourceVersion string) {
	t.Helper()
	upTo, err := store.ParseRevision(resourceVersion)
	if err != nil {
		t.Fatal(err)
	}
	shard := upTo.Shard()
	p.catchUp(ctx, t, shard)
	kept := historySize(ctx, t, p.replica, shard, upTo)
	filler := make([]byte, smallHistory-kept-2*recordCost-len(fillerKey))
	propose(ctx, t, p.host, shard, store.Op{Key: fillerKey, Value: filler})
	rev := propose(ctx, t, p.host, shard, store.Op{Key: fillerKey, Delete: true})
	p.catchUp(ctx, t, shard)
	view, _ := p.replica.Local(shard)
	if view.Floor() != upTo {
		t.Fatalf("compacted up to %d, not %d", view.Floor(), upTo)
	}
	p.pass(ctx, t, rev)
}

// catchUp waits until the replica shows what was written from elsewhere.
func (p *pods) catchUp(ctx context.Context, t *testing.T, shard uint64) {
	t.Helper()
	if _, _, _, err := p.replica.Get(ctx, shard, fillerKey, consensus.Linearizable); err != nil {
		t.Fatal(err)
	}
}

// historySize is what the store counts for the records after a revision.
func historySize(ctx context.Context, t *testing.T, host *consensus.Host, shard uint64, after store.Revision) int {
	t.Helper()
	w, err := host.Watch(ctx, shard, consensus.WatchOptions{After: after, Progress: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	size := 0
	for batch := range w.Events() {
		for _, event := range batch {
			if event.Progress {
				return size
			}
			size += recordCost
			if event.PrevMod != 0 {
				size += len(event.Key) + len(event.Prev)
			}
		}
	}
	t.Fatal(w.Err())
	return 0
}

func propose(ctx context.Context, t testing.TB, host *consensus.Host, shard uint64, op store.Op) store.Revision {
	t.Helper()
	result, err := host.Propose(ctx, shard, store.Transaction{Ops: []store.Op{op}})
	if err != nil || !result.OK {
		t.Fatalf("propose: %+v, %v", result, err)
	}
	return result.Revision
}

// touch is upstream's IncreaseRVFunc: a write that is no object's. Every shard is
// made to pass it, as in etcd every reader sees the revision of every write.
func (p *pods) touch(ctx context.Context, t *testing.T) int64 {
	t.Helper()
	shards, err := p.shards.All(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rev := propose(ctx, t, p.host, shards[len(shards)-1], store.Op{Key: touchKey, Value: []byte(strconv.FormatInt(prefixes.Add(1), 10))})
	p.pass(ctx, t, rev)
	return int64(rev)
}

// pass takes every shard beyond a revision.
func (p *pods) pass(ctx context.Context, t *testing.T, rev store.Revision) {
	t.Helper()
	shards, err := p.shards.All(ctx)
	if err == nil {
		err = p.closeAll(ctx, shards, merge.ClosedThrough(rev+store.Tick))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// checkReads is upstream's CallsValidation: a list opens no value that it does not
// look at.
func (p *pods) checkReads(t *testing.T, _, processed uint64) {
	t.Helper()
	if reads := p.prefix.GetReadsAndReset(); reads != processed {
		t.Errorf("%d values opened, want %d", reads, processed)
	}
}

// renumbered shows a storage with dense revisions: 1, and one more for every write.
// Some of upstream's tests calculate with revisions ("the next one is this one plus
// one"), which etcd allows and clients may not; with the numbers translated they
// test the same things here.
type renumbered struct {
	*pods
	t *testing.T

	mu       sync.Mutex
	stream   *stream
	start    store.Revision
	writes   []store.Revision
	frontier store.Revision
}

func newRenumbered(t *testing.T, p *pods) *renumbered {
	t.Helper()
	ctx := t.Context()
	r := &renumbered{pods: p, t: t}
	shards, err := p.shards.All(ctx)
	if err == nil {
		r.start, err = p.confirmed(ctx, shards)
	}
	if err == nil {
		r.stream, err = p.openStream(ctx, shards, "", r.start)
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for next := range r.stream.batches {
			r.mu.Lock()
			for _, event := range next.events {
				if event.Key != fillerKey || event.Delete {
					r.writes = append(r.writes, event.Revision)
				}
			}
			r.frontier = next.frontier
			r.mu.Unlock()
		}
	}()
	return r
}

// dense is the number of a revision.
func (r *renumbered) dense(rev store.Revision) uint64 {
	shards, err := r.shards.All(r.t.Context())
	if err == nil {
		err = r.closeAll(r.t.Context(), shards, rev)
	}
	if err != nil {
		r.t.Error(err)
	}
	r.follow(rev)
	r.mu.Lock()
	defer r.mu.Unlock()
	return 1 + uint64(sort.Search(len(r.writes), func(i int) bool { return r.writes[i] > rev }))
}

// follow waits until everything up to a revision is numbered. The replica that the
// stream reads from may be behind the one that the revision came from.
func (r *renumbered) follow(rev store.Revision) {
	_ = wait.PollUntilContextCancel(r.t.Context(), 2*time.Millisecond, true, func(context.Context) (bool, error) {
		r.mu.Lock()
		frontier := r.frontier
		r.mu.Unlock()
		if merge.ClosedThrough(frontier) >= rev {
			return true, nil
		}
		r.stream.ask()
		return false, nil
	}) // it ends early only with the test
}

// real is the revision of a number; one that was not given out yet is far ahead.
func (r *renumbered) real(dense uint64) store.Revision {
	shards, err := r.shards.All(r.t.Context())
	if err == nil {
		var now store.Revision
		now, err = r.confirmed(r.t.Context(), shards)
		r.follow(now)
	}
	if err != nil {
		r.t.Error(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case dense == 1:
		return r.start
	case dense-2 < uint64(len(r.writes)):
		return r.writes[dense-2]
	default:
		return math.MaxInt64
	}
}

// realVersion and denseVersion translate resourceVersions; what is none, and those
// with a meaning of their own, stay as they are.
func (r *renumbered) realVersion(version string) string {
	dense, err := strconv.ParseUint(version, 10, 64)
	if err != nil || dense == 0 {
		return version
	}
	return r.real(dense).String()
}

func (r *renumbered) denseVersion(version string) string {
	rev, err := store.ParseRevision(version)
	if err != nil || rev == 0 {
		return version
	}
	return strconv.FormatUint(r.dense(rev), 10)
}

// token translates the revision in a continue token.
func token(text string, translate func(int64) int64) string {
	var content struct {
		Version  string `json:"v"`
		Revision int64  `json:"rv"`
		Start    string `json:"start"`
	}
	data, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || json.Unmarshal(data, &content) != nil || content.Revision <= 0 {
		return text
	}
	content.Revision = translate(content.Revision)
	if data, err = json.Marshal(content); err != nil {
		return text
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

func (r *renumbered) renumber(obj runtime.Object) {
	accessor, err := meta.Accessor(obj)
	if err != nil {
		r.t.Error(err)
		return
	}
	accessor.SetResourceVersion(r.denseVersion(accessor.GetResourceVersion()))
}

func (r *renumbered) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	err := r.pods.Create(ctx, key, obj, out, ttl)
	if err == nil && out != nil {
		r.renumber(out)
	}
	return err
}

func (r *renumbered) Delete(ctx context.Context, key string, out runtime.Object, preconditions *kstorage.Preconditions,
	validate kstorage.ValidateObjectFunc, _ runtime.Object, opts kstorage.DeleteOptions) error {
	err := r.pods.Delete(ctx, key, out, preconditions, validate, nil, opts)
	if err == nil {
		r.renumber(out)
	}
	return err
}

func (r *renumbered) GuaranteedUpdate(ctx context.Context, key string, out runtime.Object, ignoreNotFound bool,
	preconditions *kstorage.Preconditions, update kstorage.UpdateFunc, _ runtime.Object) error {
	err := r.pods.GuaranteedUpdate(ctx, key, out, ignoreNotFound, preconditions, update, nil)
	if err == nil {
		r.renumber(out)
	}
	return err
}

func (r *renumbered) GetList(ctx context.Context, key string, opts kstorage.ListOptions, listObj runtime.Object) error {
	opts.ResourceVersion = r.realVersion(opts.ResourceVersion)
	opts.Predicate.Continue = token(opts.Predicate.Continue, func(rev int64) int64 { return int64(r.real(uint64(rev))) })
	if err := r.pods.GetList(ctx, key, opts, listObj); err != nil {
		return err
	}
	list, err := meta.ListAccessor(listObj)
	if err != nil {
		return err
	}
	list.SetResourceVersion(r.denseVersion(list.GetResourceVersion()))
	list.SetContinue(token(list.GetContinue(), func(rev int64) int64 { return int64(r.dense(store.Revision(rev))) }))
	return meta.EachListItem(listObj, func(obj runtime.Object) error {
		r.renumber(obj)
		return nil
	})
}

func (r *renumbered) CompactRevision() int64 {
	floor := r.pods.CompactRevision()
	if store.Revision(floor) <= r.start {
		return 0 // what an earlier test compacted
	}
	return int64(r.dense(store.Revision(floor)))
}

func (r *renumbered) compact(ctx context.Context, t *testing.T, resourceVersion string) {
	r.pods.compact(ctx, t, r.realVersion(resourceVersion))
}

func (r *renumbered) increase(ctx context.Context, t *testing.T) int64 {
	return int64(r.dense(store.Revision(r.touch(ctx, t))))
}
