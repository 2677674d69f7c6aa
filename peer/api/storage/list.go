package storage

import (
	"context"
	"fmt"
	"reflect"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/features"
	kstorage "k8s.io/apiserver/pkg/storage"
	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"shoal/consensus"
	"shoal/consensus/merge"
	"shoal/consensus/store"
)

const (
	// firstPage and lastPage bound how many keys one read fetches from a shard: a
	// page that a selector thins out is followed by ever larger ones.
	firstPage = 500
	lastPage  = 10000
)

// GetList implements storage.Interface.
func (s *Storage) GetList(ctx context.Context, key string, opts kstorage.ListOptions, listObj runtime.Object) error {
	prefix, err := s.keys.prepare(key, opts.Recursive)
	if err != nil {
		return err
	}
	items, err := itemsOf(listObj)
	if err != nil {
		return err
	}
	withRev, continueKey, err := kstorage.ValidateListOptions(prefix, s.versioner, opts)
	if err != nil {
		return err
	}
	want, err := s.wants(opts, withRev)
	if err != nil {
		return err
	}
	sink := &listSink{s: s, items: items, newItem: itemFunc(listObj, items), predicate: opts.Predicate}
	sink.unreadable.collect = s.markCorrupt
	var rev store.Revision
	var page listed
	if opts.Recursive {
		page, err = s.listRange(ctx, prefix, continueKey, want, sink)
		rev = page.rev
	} else {
		rev, err = s.listOne(ctx, prefix, want, sink)
	}
	if err != nil {
		return listError(err, continueKey, prefix)
	}
	if err := sink.unreadable.err(s.resource); err != nil {
		return err
	}
	if items.IsNil() {
		items.Set(reflect.MakeSlice(items.Type(), 0, 0)) // an empty list is [], never null
	}
	token, left, err := kstorage.PrepareContinueToken(sink.lastKey, prefix, int64(rev), page.count, page.more, opts)
	if err != nil {
		return err
	}
	if err := s.versioner.UpdateList(listObj, uint64(rev), token, left); err != nil {
		return err
	}
	if utilfeature.DefaultFeatureGate.Enabled(features.ShardedListAndWatch) {
		opts.Predicate.SetShardInfoOnList(listObj)
	}
	return nil
}

// listOne lists the single object at a key.
func (s *Storage) listOne(ctx context.Context, key string, want wanted, sink *listSink) (store.Revision, error) {
	shard, err := s.shardOf(ctx, key)
	if err != nil {
		return 0, err
	}
	if want.exact == 0 {
		kv, rev, err := s.read(ctx, shard, key, want.on(shard).minimum, want.newest)
		if err == nil && kv.Mod != 0 {
			_, err = sink.add(ctx, kv)
		}
		return rev, err
	}
	if err := s.reach(ctx, shard, want.exact); err != nil {
		return 0, err
	}
	result, err := s.list(ctx, shard, consensus.ListOptions{Start: key, End: key + "\x00", At: merge.OnShard(shard, want.exact)}, s.level(shard, want.exact))
	if err == nil && len(result.KVs) > 0 {
		_, err = sink.add(ctx, result.KVs[0])
	}
	return want.exact, err
}

// listed is what a range list found.
type listed struct {
	rev store.Revision
	// count is the number of keys from the start of this part of the list on.
	count int64
	// more says that the limit cut the list.
	more bool
}

// listRange lists the keys with a prefix, from continueKey on if it is given.
func (s *Storage) listRange(ctx context.Context, prefix, continueKey string, want wanted, sink *listSink) (listed, error) {
	shards, err := s.shardsOf(ctx, prefix)
	if err != nil {
		return listed{}, err
	}
	want = want.on(shards...)
	snap, err := s.pin(ctx, shards, want)
	if err != nil {
		return listed{}, err
	}
	if sink.predicate.Limit == 0 {
		if err := s.listers.enter(ctx); err != nil {
			return listed{}, err
		}
		defer s.listers.leave()
	}
	reader := &rangeReader{s: s, snap: snap, want: want, prefix: prefix, start: continueKey, page: pageSize(sink.predicate)}
	for {
		kvs, err := reader.next(ctx)
		if err != nil {
			return listed{}, err
		}
		for i, kv := range kvs {
			if sink.full() {
				return listed{rev: reader.snap.rev, count: reader.count, more: true}, nil
			}
			stop, err := sink.add(ctx, kv)
			if err != nil || stop {
				return listed{rev: reader.snap.rev}, err
			}
			kvs[i] = store.KV{} // long lists take seconds to decode: let go early
		}
		if !reader.more {
			return listed{rev: reader.snap.rev, count: reader.count}, nil
		}
		if sink.full() {
			return listed{rev: reader.snap.rev, count: reader.count, more: true}, nil
		}
	}
}

// pageSize is how many keys the first read of a list asks for.
func pageSize(predicate kstorage.SelectionPredicate) int {
	if predicate.Limit > 0 {
		return int(min(predicate.Limit, lastPage))
	}
	return lastPage
}

// rangeReader reads the keys with a prefix from all shards of a snapshot, in key
// order, a page at a time.
type rangeReader struct {
	s      *Storage
	snap   snapshot
	want   wanted
	prefix string
	// start is inclusive, end exclusive; "" is no bound.
	start, end string
	page       int
	// more says that keys remain after those that were read.
	more bool
	// count is the number of keys from the first start on.
	count int64
	begun bool
}

// manyCuts is how often in a row a list may meet a transaction that was committed
// while it chose its revision. Each time is unlikely.
const manyCuts = 20

// first reads the first page, at a revision that cuts no transaction in two unless
// the caller named it: one whose changes lie on both sides was committed after the
// revision was chosen and before its shard was closed. The list then moves to its end.
func (r *rangeReader) first(ctx context.Context) ([]consensus.ListResult, error) {
	for range manyCuts {
		results, err := r.pages(ctx)
		if err != nil || r.snap.loose || r.snap.rev == 0 || r.want.exact != 0 {
			return results, err
		}
		whole := r.snap.rev
		for _, result := range results {
			if result.Whole > result.Revision {
				whole = max(whole, result.Whole)
			}
		}
		if whole == r.snap.rev {
			return results, nil
		}
		if err := r.s.closeAll(ctx, r.snap.shards, whole); err != nil {
			return nil, err
		}
		r.snap.rev = whole
	}
	return nil, apierrors.NewServiceUnavailable("too many transactions were committed to list between them; try again")
}

// pages reads a page from every shard.
func (r *rangeReader) pages(ctx context.Context) ([]consensus.ListResult, error) {
	results := make([]consensus.ListResult, len(r.snap.shards))
	group, ctx := errgroup.WithContext(ctx)
	for i, shard := range r.snap.shards {
		group.Go(func() (err error) {
			results[i], err = r.read(ctx, shard)
			return err
		})
	}
	return results, group.Wait()
}

// next reads the next page. Every shard is asked for a whole page, because all of it
// may come from one of them; what lies beyond the last key that is certain to be in
// order is read again with the following page.
func (r *rangeReader) next(ctx context.Context) ([]store.KV, error) {
	read := r.pages
	if !r.begun {
		read = r.first
	}
	results, err := read(ctx)
	if err != nil {
		return nil, err
	}
	if r.snap.rev == 0 {
		r.snap.rev = max(results[0].Revision, r.want.minimum)
	}
	lists := make([][]store.KV, len(results))
	for i := range results {
		lists[i] = results[i].KVs
		if !r.begun {
			r.count += results[i].Count
		}
	}
	r.begun = true
	// beyond the first of the cut lists' ends, a cut list may have a key in between
	end := ""
	r.more = false
	for i := range results {
		if !results[i].More {
			continue
		}
		r.more = true
		if last := lists[i][len(lists[i])-1].Key; end == "" || last < end {
			end = last
		}
	}
	if end != "" {
		for i := range lists {
			lists[i] = through(lists[i], end)
		}
	}
	r.start = end + "\x00"
	r.page = min(r.page*2, lastPage)
	return merge.Keys(lists), nil
}

func (r *rangeReader) read(ctx context.Context, shard uint64) (consensus.ListResult, error) {
	options := consensus.ListOptions{Prefix: r.prefix, Start: r.start, End: r.end, Limit: r.page}
	switch {
	case r.snap.loose:
		return r.s.list(ctx, shard, options, consensus.Local)
	case r.snap.rev != 0:
		options.At = merge.OnShard(shard, r.snap.rev)
		return r.s.list(ctx, shard, options, r.s.level(shard, r.snap.rev))
	case !r.want.newest && (r.want.minimum == 0 || r.s.reached(shard, r.want.minimum)):
		return r.s.list(ctx, shard, options, consensus.Local)
	default:
		return r.s.list(ctx, shard, options, consensus.Linearizable)
	}
}

// level is the cheapest level of a read that shows everything up to rev, in a shard
// that is closed through it.
func (s *Storage) level(shard uint64, rev store.Revision) consensus.ReadLevel {
	if s.reached(shard, rev) {
		return consensus.Local
	}
	return consensus.Linearizable
}

// through cuts a sorted list after the last key at or below end.
func through(list []store.KV, end string) []store.KV {
	n := len(list)
	for n > 0 && list[n-1].Key > end {
		n--
	}
	return list[:n]
}

// listSink decodes what a list reads, filters it, and fills the list's items.
type listSink struct {
	s          *Storage
	items      reflect.Value
	newItem    func() runtime.Object
	predicate  kstorage.SelectionPredicate
	unreadable unreadable
	// lastKey is the last key looked at.
	lastKey string
}

// full says that the limit is reached.
func (l *listSink) full() bool {
	return l.predicate.Limit > 0 && int64(l.items.Len()) >= l.predicate.Limit
}

// add takes one stored object. stop says that the list cannot go on, for a reason
// that is in unreadable.
func (l *listSink) add(ctx context.Context, kv store.KV) (stop bool, err error) {
	l.lastKey = kv.Key
	data, _, err := l.s.open(ctx, kv.Key, kv.Value)
	if err != nil {
		return l.unreadable.add(kv.Key, kstorage.NewInternalError(fmt.Errorf("unable to transform key %q: %w", kv.Key, err))), nil
	}
	if ctx.Err() != nil {
		return false, kstorage.NewTimeoutError(kv.Key, "request did not complete within requested timeout")
	}
	obj, err := l.s.decodeNew(data, l.newItem(), kv.Mod)
	if err != nil {
		return l.unreadable.add(kv.Key, err), nil
	}
	// an object whose attributes cannot be read does not match
	if matched, err := l.predicate.Matches(obj); err == nil && matched {
		l.items.Set(reflect.Append(l.items, reflect.ValueOf(obj).Elem()))
	}
	return false, nil
}

// itemsOf is the list object's slice of items.
func itemsOf(listObj runtime.Object) (reflect.Value, error) {
	pointer, err := meta.GetItemsPtr(listObj)
	if err != nil {
		return reflect.Value{}, err
	}
	items, err := conversion.EnforcePtr(pointer)
	if err != nil {
		return reflect.Value{}, fmt.Errorf("list items: %w", err)
	}
	if items.Kind() != reflect.Slice {
		return reflect.Value{}, fmt.Errorf("list items are a %v, not a slice", items.Kind())
	}
	return items, nil
}

// itemFunc makes empty items. Items of an unstructured list get its version, from
// which the codec takes what to convert to.
func itemFunc(listObj runtime.Object, items reflect.Value) func() runtime.Object {
	if list, ok := listObj.(*unstructured.UnstructuredList); ok && list.GetAPIVersion() != "" {
		version := list.GetAPIVersion()
		return func() runtime.Object {
			return &unstructured.Unstructured{Object: map[string]any{"apiVersion": version}}
		}
	}
	item := items.Type().Elem()
	return func() runtime.Object { return reflect.New(item).Interface().(runtime.Object) }
}
