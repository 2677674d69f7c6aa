package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/peer/api"
)

// registry is where the API keeps its objects in the store.
const registry = "/registry/"

// Key prefixes of the kinds that a peer follows by itself, as the API's storage writes them.
const (
	podPrefix      = registry + "pods/"
	nodePrefix     = registry + "minions/"
	servicePrefix  = registry + "services/specs/"
	endpointPrefix = registry + "endpointslices/"

	configMapPrefix = registry + "configmaps/"
	secretPrefix    = registry + "secrets/"
)

// object is any API object that a feed delivers.
type object interface {
	metav1.Object
	apiruntime.Object
}

// change is one object as the store has it now. With Gone, the object is the last one known under that key.
type change struct {
	Shard  uint64 // as the queue says, which knows whose feed it is
	Key    string
	Object object
	Gone   bool
}

// feed follows keys of one shard: a list, then every event, in the shard's own order. It waits for no other shard, so what it delivers
// is as fresh as the replica it reads; whoever needs an order between shards uses the API's watches instead.
type feed struct {
	host   *consensus.Host
	shard  uint64
	prefix string
	// want tells, by key, what is decoded at all; nil is everything.
	want func(key string) bool
	// may tells, by its stored form, whether an object can be one to deliver; one that cannot be any more is gone. Nil is everything.
	may func(value []byte) bool
	log *slog.Logger
	// apply takes what changed, and up to which revision of the shard everything is told. Its first call brings the whole list, even
	// an empty one. It is called from one goroutine.
	apply func(changes []change, upTo store.Revision)

	known map[string]object
	told  store.Revision // up to where the store has been told
}

// retryFeed is how long a feed waits before it reads anew after an error.
const retryFeed = 200 * time.Millisecond

// Run follows until ctx ends. Errors are retried for ever: a shard without quorum today has one tomorrow.
func (f *feed) Run(ctx context.Context) error {
	for {
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, consensus.ErrCompacted) && !errors.Is(err, consensus.ErrSlowWatcher) {
			f.log.Warn("following the store failed, reading anew", "shard", f.shard, "prefix", f.prefix, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryFeed):
		}
	}
}

func (f *feed) follow(ctx context.Context) error {
	list, err := f.list(ctx)
	if err != nil {
		return fmt.Errorf("listing: %w", err)
	}
	f.tell(f.replace(list.KVs), list.Revision)

	watch, err := f.host.Watch(ctx, f.shard, consensus.WatchOptions{Prefix: f.prefix, After: list.Revision, Progress: true, Stay: true})
	if err != nil {
		return fmt.Errorf("watching after %s: %w", list.Revision, err)
	}
	defer watch.Stop()
	for events := range watch.Events() {
		changes := make([]change, 0, len(events))
		var upTo store.Revision
		for _, event := range events {
			upTo = max(upTo, event.Revision)
			if event.Progress {
				continue
			}
			if c, ok := f.take(event); ok {
				changes = append(changes, c)
			}
		}
		f.tell(changes, upTo)
	}
	return watch.Err()
}

// list reads what there is. A copy may be older than what was told before, as that of a replica that has just started: by it, what was made
// since would be gone.
func (f *feed) list(ctx context.Context) (consensus.ListResult, error) {
	list, err := f.host.List(ctx, f.shard, consensus.ListOptions{Prefix: f.prefix}, consensus.Local)
	if err == nil && list.Revision < f.told {
		list, err = f.host.List(ctx, f.shard, consensus.ListOptions{Prefix: f.prefix}, consensus.Linearizable)
	}
	return list, err
}

func (f *feed) tell(changes []change, upTo store.Revision) {
	f.told = max(f.told, upTo)
	f.apply(changes, upTo)
}

// replace makes a list what is known, and returns the difference.
func (f *feed) replace(list []store.KV) []change {
	before := f.known
	f.known = make(map[string]object, len(list))
	var fresh []store.KV
	for _, kv := range list {
		if f.want != nil && !f.want(kv.Key) {
			continue
		}
		if f.may != nil && !f.may(kv.Value) {
			continue
		}
		old, had := before[kv.Key]
		delete(before, kv.Key)
		if had && old.GetResourceVersion() == kv.Mod.String() {
			f.known[kv.Key] = old
			continue
		}
		fresh = append(fresh, kv)
	}
	var changes []change
	for i, decoded := range f.readAll(fresh) {
		if decoded != nil {
			f.known[fresh[i].Key] = decoded
			changes = append(changes, change{Key: fresh[i].Key, Object: decoded})
		}
	}
	for key, old := range before {
		changes = append(changes, change{Key: key, Object: old, Gone: true})
	}
	return changes
}

// take brings one event into what is known. It is false for an event that nobody wants, or that says nothing new.
func (f *feed) take(event store.Event) (change, bool) {
	if f.want != nil && !f.want(event.Key) {
		return change{}, false
	}
	if event.Delete || f.may != nil && !f.may(event.Value) {
		old, had := f.known[event.Key]
		delete(f.known, event.Key)
		return change{Key: event.Key, Object: old, Gone: true}, had
	}
	decoded, ok := f.read(event.Key, event.Value, event.Revision)
	if !ok {
		return change{}, false
	}
	f.known[event.Key] = decoded
	return change{Key: event.Key, Object: decoded}, true
}

// readAll decodes values on all cores, since a leader that takes over waits for it; nil for those that cannot be read.
func (f *feed) readAll(list []store.KV) []object {
	decoded := make([]object, len(list))
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 1+len(list)/readAlone) {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(list); i = int(next.Add(1)) - 1 {
				if o, ok := f.read(list[i].Key, list[i].Value, list[i].Mod); ok {
					decoded[i] = o
				}
			}
		})
	}
	workers.Wait()
	return decoded
}

// readAlone is how many values are decoded without help.
const readAlone = 500

// read decodes a value; false for what nobody here can read (a kind of a newer version, say), which is reported.
func (f *feed) read(key string, value []byte, at store.Revision) (object, bool) {
	decoded, err := decode(value, at)
	if err != nil {
		f.log.Warn("an object cannot be read and is left out", "key", key, "error", err)
		return nil, false
	}
	return decoded, true
}

// decode reads an object as stored, gives it the defaults that whoever reads it through the API sees, and the revision it has.
func decode(value []byte, at store.Revision) (object, error) {
	raw, _, err := scheme.Codecs.UniversalDeserializer().Decode(value, nil, nil)
	if err != nil {
		return nil, err
	}
	decoded, ok := raw.(object)
	if !ok {
		return nil, fmt.Errorf("%T has no metadata", raw)
	}
	api.SetDefaults(raw)
	decoded.SetResourceVersion(at.String())
	return decoded, nil
}

// nameOf takes namespace and name from a key below a namespaced kind's prefix.
func nameOf(key, prefix string) (namespace, name string) {
	namespace, name, found := strings.Cut(strings.TrimPrefix(key, prefix), "/")
	if !found {
		return "", namespace
	}
	return namespace, name
}
