package storage

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/features"
	kstorage "k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"shoal/consensus"
	"shoal/consensus/store"
)

const (
	// MaxObject is the largest encoded object with its key, in bytes: what etcd
	// takes by default, so that whatever fits Kubernetes fits here and the reverse.
	MaxObject = 1536 << 10

	defaultBookmarkPeriod = time.Minute
	defaultPatience       = 10 * time.Second
	// defaultListers bounds how many lists without a limit are decoded at once.
	defaultListers = 4
)

// Shards says which shard holds what.
type Shards struct {
	// Locate is the shard of a namespace. It must give the same answer on every
	// peer for as long as the namespace exists. It is not asked for "".
	Locate func(ctx context.Context, namespace string) (uint64, error)
	// All lists the shards that objects of namespaced resources may be in: those
	// that Locate answers, and the meta shard if there may be objects without a
	// namespace among them.
	All func(ctx context.Context) ([]uint64, error)
	// Choose picks the shard of a namespace about to be created and says how to
	// record that. Nil records nothing.
	Choose func(ctx context.Context, namespace string) (store.Condition, store.Op, error)
	// Forget says how to take back what Choose recorded, once the namespace is
	// deleted. nothing is true if there is nothing to take back.
	Forget func(ctx context.Context, namespace string) (op store.Op, nothing bool, err error)
}

// Config describes the storage of one resource.
type Config struct {
	Host   *consensus.Host
	Shards Shards
	// Codec encodes to and decodes from the stored version.
	Codec runtime.Codec
	// NewFunc and NewListFunc make an empty object and an empty list.
	NewFunc, NewListFunc func() runtime.Object
	// Prefix is the cluster's key prefix, "/registry". ResourcePrefix is the
	// resource's below it, "/pods".
	Prefix, ResourcePrefix string
	GroupResource          schema.GroupResource
	// Namespaced says that keys carry a namespace.
	Namespaced bool
	// Attributes reads what selectors look at, as every predicate of the resource does. Nil
	// leaves that to the predicates.
	Attributes kstorage.AttrFunc
	// Transformer seals values at rest. Nil stores them as they are.
	Transformer value.Transformer
	// Versioner reads and writes resourceVersions. Nil is upstream's.
	Versioner kstorage.Versioner
	// BookmarkPeriod is how often a watch that allows bookmarks gets one. Default
	// one minute, as upstream's watch cache.
	BookmarkPeriod time.Duration
	// Patience is how long one read or write of a shard is tried before the client
	// is told what is wrong with the shard. It should be well below the API server's
	// request timeout, which says only that there was one. Default 10 s.
	Patience time.Duration
	// Listers bounds unlimited lists over all resources that share it. Nil is a
	// bound of this resource's own.
	Listers Listers
	// Logger is where a watch that had to be cut is reported. Default slog.Default().
	Logger *slog.Logger
}

// Listers is a shared bound on lists without a limit: decoding tens of thousands of
// objects at once for several callers is what makes an API server's memory jump.
type Listers chan struct{}

// NewListers allows n such lists at once.
func NewListers(n int) Listers { return make(Listers, n) }

func (l Listers) enter(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l Listers) leave() { <-l }

// Storage keeps the objects of one resource. It implements
// k8s.io/apiserver/pkg/storage.Interface, whose methods' contracts it follows.
type Storage struct {
	host           *consensus.Host
	shards         Shards
	codec          runtime.Codec
	versioner      kstorage.Versioner
	transformer    value.Transformer
	newFunc        func() runtime.Object
	newListFunc    func() runtime.Object
	attributes     kstorage.AttrFunc
	keys           keyspace
	resource       schema.GroupResource
	bookmarkPeriod time.Duration
	patience       time.Duration
	listers        Listers
	log            *slog.Logger
	// markCorrupt makes values that cannot be read distinguishable, so that they
	// may be deleted unsafely (feature AllowUnsafeMalformedObjectDeletion).
	markCorrupt bool

	estimateSize atomic.Bool
	recent       recentEvents
	journals     journals

	mu      sync.Mutex
	watches map[*watcher]struct{}
}

var _ kstorage.Interface = (*Storage)(nil)

// New makes the storage of one resource. It starts nothing in the background.
func New(c Config) (*Storage, error) {
	if c.Host == nil || c.Codec == nil || c.Shards.Locate == nil || c.Shards.All == nil {
		return nil, errors.New("storage: Host, Shards and Codec are mandatory")
	}
	keys, err := newKeyspace(c.Prefix, c.ResourcePrefix, c.Namespaced)
	if err != nil {
		return nil, err
	}
	if c.Transformer == nil {
		c.Transformer = identity.NewEncryptCheckTransformer()
	}
	if c.Versioner == nil {
		c.Versioner = kstorage.APIObjectVersioner{}
	}
	if c.BookmarkPeriod == 0 {
		c.BookmarkPeriod = defaultBookmarkPeriod
	}
	if c.Patience == 0 {
		c.Patience = defaultPatience
	}
	if c.Listers == nil {
		c.Listers = NewListers(defaultListers)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	s := &Storage{
		host:           c.Host,
		shards:         c.Shards,
		codec:          c.Codec,
		versioner:      c.Versioner,
		transformer:    c.Transformer,
		newFunc:        c.NewFunc,
		newListFunc:    c.NewListFunc,
		attributes:     c.Attributes,
		keys:           keys,
		resource:       c.GroupResource,
		bookmarkPeriod: c.BookmarkPeriod,
		patience:       c.Patience,
		listers:        c.Listers,
		log:            c.Logger.With("resource", c.GroupResource.String()),
		markCorrupt:    utilfeature.DefaultFeatureGate.Enabled(features.AllowUnsafeMalformedObjectDeletion),
		watches:        map[*watcher]struct{}{},
	}
	s.journals.s = s
	if s.markCorrupt {
		s.transformer = corruptMarker{s.transformer}
	}
	return s, nil
}

// Versioner implements storage.Interface.
func (s *Storage) Versioner() kstorage.Versioner { return s.versioner }

// ReadinessCheck implements storage.Interface. There is no cache to fill: the
// storage is ready as soon as it exists, and a shard that cannot answer says so in
// each answer.
func (s *Storage) ReadinessCheck() error { return nil }

// get reads one key of a shard.
func (s *Storage) get(ctx context.Context, shard uint64, key string, level consensus.ReadLevel) (store.KV, store.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	kv, _, at, err := s.host.Get(ctx, shard, key, level)
	return kv, at, err
}

// list reads keys of a shard.
func (s *Storage) list(ctx context.Context, shard uint64, options consensus.ListOptions, level consensus.ReadLevel) (consensus.ListResult, error) {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	return s.host.List(ctx, shard, options, level)
}

// propose writes to a shard.
func (s *Storage) propose(ctx context.Context, shard uint64, tx store.Transaction) (store.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	return s.host.Propose(ctx, shard, tx)
}

// close makes a shard pass a revision.
func (s *Storage) close(ctx context.Context, shard uint64, upTo store.Revision) error {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	_, err := s.host.Close(ctx, shard, upTo)
	return err
}

// shardOf is the shard of a single object's stored key.
func (s *Storage) shardOf(ctx context.Context, key string) (uint64, error) {
	namespace, _ := s.keys.namespace(key)
	if namespace == "" {
		return consensus.MetaShard, nil
	}
	return s.shards.Locate(ctx, namespace)
}

// shardsOf lists the shards that hold the keys with a stored prefix.
func (s *Storage) shardsOf(ctx context.Context, prefix string) ([]uint64, error) {
	namespace, whole := s.keys.namespace(prefix)
	if whole {
		return s.shards.All(ctx)
	}
	if namespace == "" {
		return []uint64{consensus.MetaShard}, nil
	}
	shard, err := s.shards.Locate(ctx, namespace)
	return []uint64{shard}, err
}
