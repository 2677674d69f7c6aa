package storage

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	kstorage "k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"

	"shoal/consensus"
)

// DecoratorConfig is what the storages of all resources share.
type DecoratorConfig struct {
	Host *consensus.Host
	// Shards defaults to the directory in the host's meta shard.
	Shards Shards
	// Listers is how many lists without a limit are decoded at once, over all
	// resources. Default 4.
	Listers int
	// BookmarkPeriod defaults to one minute.
	BookmarkPeriod time.Duration
	Logger         *slog.Logger
}

// NewDecorator makes the storages of REST options: a generic.StorageDecorator that
// takes codec, prefix and transformer from the storage config it is given and keeps
// the objects in the host's shards. It serves built-in and custom resources alike.
func NewDecorator(c DecoratorConfig) generic.StorageDecorator {
	if c.Shards.Locate == nil {
		c.Shards = NewDirectory(c.Host).Shards()
	}
	if c.Listers == 0 {
		c.Listers = defaultListers
	}
	listers := NewListers(c.Listers)
	return func(config *storagebackend.ConfigForResource, resourcePrefix string, keyFunc func(runtime.Object) (string, error),
		newFunc, newListFunc func() runtime.Object, attributes kstorage.AttrFunc, _ kstorage.IndexerFuncs, _ *cache.Indexers,
	) (kstorage.Interface, factory.DestroyFunc, error) {
		namespaced, err := carriesNamespace(keyFunc, newFunc())
		if err != nil {
			return nil, nil, fmt.Errorf("storage of %v: %w", config.GroupResource, err)
		}
		s, err := New(Config{
			Host:           c.Host,
			Shards:         c.Shards,
			Codec:          config.Codec,
			NewFunc:        newFunc,
			NewListFunc:    newListFunc,
			Prefix:         config.Prefix,
			ResourcePrefix: resourcePrefix,
			GroupResource:  config.GroupResource,
			Namespaced:     namespaced,
			Attributes:     attributes,
			Transformer:    config.Transformer,
			BookmarkPeriod: c.BookmarkPeriod,
			Listers:        listers,
			Logger:         c.Logger,
		})
		if err != nil {
			return nil, nil, fmt.Errorf("storage of %v: %w", config.GroupResource, err)
		}
		return s, func() {}, nil
	}
}

// carriesNamespace finds out whether a resource's keys have a namespace in them, by
// asking for the key of an object that has one: the decorator is not told.
func carriesNamespace(keyFunc func(runtime.Object) (string, error), obj runtime.Object) (bool, error) {
	const namespace, name = "some-namespace", "some-name"
	accessor, err := meta.Accessor(obj)
	if err != nil {
		return false, err
	}
	accessor.SetNamespace(namespace)
	accessor.SetName(name)
	key, err := keyFunc(obj)
	if err != nil {
		return false, fmt.Errorf("key of an example object: %w", err)
	}
	return strings.HasSuffix(key, "/"+namespace+"/"+name), nil
}

// RESTOptionsGetter gives another getter's REST options our storage. Codecs, key
// prefixes and encryption stay as the inner getter chose them: for built-in
// resources that is upstream's storage factory, for custom ones upstream's
// NewCRDRESTOptionsGetter.
type RESTOptionsGetter struct {
	inner     generic.RESTOptionsGetter
	decorator generic.StorageDecorator
}

var _ generic.RESTOptionsGetter = RESTOptionsGetter{}

// NewRESTOptionsGetter puts the decorator into the inner getter's options.
func NewRESTOptionsGetter(inner generic.RESTOptionsGetter, decorator generic.StorageDecorator) RESTOptionsGetter {
	return RESTOptionsGetter{inner: inner, decorator: decorator}
}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (g RESTOptionsGetter) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	options, err := g.inner.GetRESTOptions(resource, example)
	if err != nil {
		return options, err
	}
	options.Decorator = g.decorator
	return options, nil
}
