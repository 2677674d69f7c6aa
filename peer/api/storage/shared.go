package storage

import (
	"bytes"
	"io"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"shoal/consensus/store"
)

// recentCapacity is how many objects of recent events are kept for other watches.
const recentCapacity = 64

// recentEvents lets the watches of one resource share the work of decoding an
// event's object, and of encoding it again for their clients.
type recentEvents struct {
	mu      sync.Mutex
	enabled bool
	objects map[eventID]*sharedObject
	order   []eventID
}

// eventID names an object of an event: the one after the change, or before it.
type eventID struct {
	rev    store.Revision
	before bool
}

// shared turns sharing on as soon as there is somebody to share with. Turning it
// off drops what is kept.
func (r *recentEvents) shared(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.enabled = on
	if !on {
		r.objects, r.order = nil, nil
	}
}

// object returns the event's object twice: for reading, and in the form to hand to a
// watch's reader. Neither must be changed.
func (r *recentEvents) object(id eventID, decode func() (runtime.Object, error)) (read, hand runtime.Object, err error) {
	r.mu.Lock()
	if !r.enabled {
		r.mu.Unlock()
		obj, err := decode()
		return obj, obj, err
	}
	shared := r.objects[id]
	if shared == nil {
		shared = &sharedObject{}
		r.add(id, shared)
	}
	r.mu.Unlock()
	shared.decoded.Do(func() { shared.obj, shared.err = decode() })
	return shared.obj, shared, shared.err
}

func (r *recentEvents) add(id eventID, obj *sharedObject) {
	if r.objects == nil {
		r.objects = map[eventID]*sharedObject{}
	}
	if len(r.order) == recentCapacity {
		delete(r.objects, r.order[0])
		r.order = r.order[1:]
	}
	r.objects[id] = obj
	r.order = append(r.order, id)
}

// sharedObject is an object that several watches hand out. It implements
// runtime.CacheableObject: each encoding is made once.
type sharedObject struct {
	decoded sync.Once
	obj     runtime.Object
	err     error

	mu        sync.Mutex
	encodings map[runtime.Identifier]*encoding
}

type encoding struct {
	once sync.Once
	data []byte
	err  error
}

var (
	_ runtime.CacheableObject   = (*sharedObject)(nil)
	_ metav1.ObjectMetaAccessor = (*sharedObject)(nil)
)

// CacheEncode implements runtime.CacheableObject.
func (o *sharedObject) CacheEncode(id runtime.Identifier, encode func(runtime.Object, io.Writer) error, w io.Writer) error {
	o.mu.Lock()
	e := o.encodings[id]
	if e == nil {
		if o.encodings == nil {
			o.encodings = map[runtime.Identifier]*encoding{}
		}
		e = &encoding{}
		o.encodings[id] = e
	}
	o.mu.Unlock()
	e.once.Do(func() {
		var buffer bytes.Buffer
		e.err = encode(o.GetObject(), &buffer)
		e.data = buffer.Bytes()
	})
	if e.err != nil {
		return e.err
	}
	_, err := w.Write(e.data)
	return err
}

// GetObject implements runtime.CacheableObject.
func (o *sharedObject) GetObject() runtime.Object { return o.obj.DeepCopyObject() }

// GetObjectKind implements runtime.Object.
func (o *sharedObject) GetObjectKind() schema.ObjectKind { return o.obj.GetObjectKind() }

// DeepCopyObject implements runtime.Object. A copy is for changing, so it is no
// longer shared.
func (o *sharedObject) DeepCopyObject() runtime.Object { return o.GetObject() }

// GetObjectMeta implements metav1.ObjectMetaAccessor.
func (o *sharedObject) GetObjectMeta() metav1.Object {
	accessor, err := meta.Accessor(o.obj)
	if err != nil {
		return nil
	}
	return accessor
}
