package api

import (
	"context"
	"errors"
	"fmt"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/registry/core/rangeallocation"
	"k8s.io/kubernetes/pkg/registry/core/service/allocator"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"
)

// nodePortsKey holds the bitmap of all node ports in use. One key, changed by compare-and-swap, is what makes two peers
// never hand out the same port.
const (
	nodePortsPrefix = "/ranges"
	nodePortsKey    = nodePortsPrefix + "/servicenodeports"
)

var (
	nodePortsResource = api.Resource("servicenodeportallocations")
	errTaken          = errors.New("taken")
)

// portBitmap keeps an allocator.Snapshottable in the store. It serves services as allocator.Interface and upstream's
// repair controller as rangeallocation.RangeRegistry.
type portBitmap struct {
	store   storage.Interface
	destroy func()
	max     int
	offset  int
	spec    string

	mu sync.Mutex // upstream calls from many requests; one at a time per peer saves lost swaps
}

func newPortBitmap(options generic.RESTOptionsGetter, ports utilnet.PortRange) (*portBitmap, *portallocator.PortAllocator, error) {
	restOptions, err := options.GetRESTOptions(nodePortsResource, &api.RangeAllocation{})
	if err != nil {
		return nil, nil, fmt.Errorf("node ports: %w", err)
	}
	store, destroy, err := restOptions.Decorator(restOptions.StorageConfig, nodePortsPrefix,
		func(runtime.Object) (string, error) { return nodePortsKey, nil },
		func() runtime.Object { return &api.RangeAllocation{} },
		nil, // a single object is never listed
		storage.DefaultClusterScopedAttr, nil, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("node ports: %w", err)
	}
	b := &portBitmap{store: store, destroy: destroy}
	pool, err := portallocator.New(ports, func(max int, spec string, offset int) (allocator.Interface, error) {
		b.max, b.spec, b.offset = max, spec, offset
		return b, nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("node ports: %w", err)
	}
	return b, pool, nil
}

// Allocate takes one port, given as its distance from the range's first.
func (b *portBitmap) Allocate(item int) (bool, error) {
	err := b.change(func(m allocator.Snapshottable) error {
		if ok, err := m.Allocate(item); err != nil || ok {
			return err
		}
		return errTaken
	})
	if errors.Is(err, errTaken) {
		return false, nil
	}
	return err == nil, err
}

// AllocateNext takes a free port by chance.
func (b *portBitmap) AllocateNext() (int, bool, error) {
	var item int
	err := b.change(func(m allocator.Snapshottable) error {
		var ok bool
		var err error
		if item, ok, err = m.AllocateNext(); err != nil || ok {
			return err
		}
		return errTaken
	})
	if errors.Is(err, errTaken) {
		return 0, false, nil
	}
	return item, err == nil, err
}

// Release gives a port back.
func (b *portBitmap) Release(item int) error {
	return b.change(func(m allocator.Snapshottable) error { return m.Release(item) })
}

// ForEach calls f for each port in use.
func (b *portBitmap) ForEach(f func(int)) {
	if m, err := b.read(); err == nil {
		m.ForEach(f)
	}
}

// Has tells whether a port is in use; a store that cannot be read has every port in use.
func (b *portBitmap) Has(item int) bool {
	m, err := b.read()
	return err != nil || m.Has(item)
}

// Free counts the ports not in use.
func (b *portBitmap) Free() int {
	m, err := b.read()
	if err != nil {
		return 0
	}
	return m.Free()
}

// Destroy releases the storage.
func (b *portBitmap) Destroy() { b.destroy() }

// Get returns the stored bitmap, empty before the first allocation.
func (b *portBitmap) Get() (*api.RangeAllocation, error) {
	stored := &api.RangeAllocation{}
	err := b.store.Get(context.Background(), nodePortsKey, storage.GetOptions{IgnoreNotFound: true}, stored)
	if err != nil {
		return nil, fmt.Errorf("read node ports: %w", err)
	}
	return stored, nil
}

// CreateOrUpdate replaces the bitmap unless it changed since the caller's Get.
func (b *portBitmap) CreateOrUpdate(next *api.RangeAllocation) error {
	return b.update(func(stored *api.RangeAllocation) (*api.RangeAllocation, error) {
		if stored.ResourceVersion != next.ResourceVersion {
			return nil, apierrors.NewConflict(nodePortsResource, "", errors.New("the node ports changed meanwhile"))
		}
		return next, nil
	})
}

func (b *portBitmap) change(do func(allocator.Snapshottable) error) error {
	return b.update(func(stored *api.RangeAllocation) (*api.RangeAllocation, error) {
		m, err := b.decode(stored)
		if err != nil {
			return nil, err
		}
		if err := do(m); err != nil {
			return nil, err
		}
		stored.Range, stored.Data = m.Snapshot()
		return stored, nil
	})
}

func (b *portBitmap) update(do func(*api.RangeAllocation) (*api.RangeAllocation, error)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.store.GuaranteedUpdate(context.Background(), nodePortsKey, &api.RangeAllocation{}, true, nil,
		storage.SimpleUpdate(func(stored runtime.Object) (runtime.Object, error) {
			return do(stored.(*api.RangeAllocation))
		}), nil)
	if err != nil {
		return fmt.Errorf("change node ports: %w", err)
	}
	return nil
}

func (b *portBitmap) read() (allocator.Snapshottable, error) {
	stored, err := b.Get()
	if err != nil {
		return nil, err
	}
	return b.decode(stored)
}

func (b *portBitmap) decode(stored *api.RangeAllocation) (allocator.Snapshottable, error) {
	m := allocator.NewAllocationMapWithOffset(b.max, b.spec, b.offset)
	if len(stored.Data) == 0 {
		return m, nil
	}
	if err := m.Restore(stored.Range, stored.Data); err != nil {
		return nil, fmt.Errorf("stored node ports: %w", err)
	}
	return m, nil
}

// NodePorts is the record of node ports in use, for the controller that repairs it.
func (s *Server) NodePorts() rangeallocation.RangeRegistry { return s.ports }
