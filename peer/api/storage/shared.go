package storage

import (
	"bytes"
	"io"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus/store"
)

const (
	// recentCapacity and recentBytes bound how many objects of recent events are kept
	// for other watches, and the size of their stored form; recentAge is for how
	// long. Watches come to an event at very different times while many events come
	// at once, and what one has dropped the next decodes again.
	recentCapacity = 4096
	recentBytes    = 4 << 20
	recentAge      = 2 * time.Second
)

// recentEvents lets the watches of one resource share the work of decoding an
// event's object, and of encoding it again for their clients.
type recentEvents struct {
	mu      sync.Mutex
	enabled bool
	objects map[eventID]*sharedObject
	order   []recentEvent
	size    int
	// sweeping says that a timer will drop what has become old.
	sweeping bool
}

// recentEvent is a kept object's place in the queue.
type recentEvent struct {
	id    eventID
	size  int
	added time.Time
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
		r.objects, r.order, r.size = nil, nil, 0
	}
}

// object returns the event's object twice: for reading, and in the form to hand to a
// watch's reader. Neither must be changed. size is that of the stored form.
func (r *recentEvents) object(id eventID, size int, decode func() (runtime.Object, error)) (read, hand runtime.Object, err error) {
	r.mu.Lock()
	if !r.enabled {
		r.mu.Unlock()
		obj, err := decode()
		return obj, obj, err
	}
	shared := r.objects[id]
	if shared == nil {
		shared = &sharedObject{}
		r.add(recentEvent{id: id, size: size, added: time.Now()}, shared)
	}
	r.mu.Unlock()
	shared.decoded.Do(func() { shared.obj, shared.err = decode() })
	return shared.obj, shared, shared.err
}

func (r *recentEvents) add(event recentEvent, obj *sharedObject) {
	if r.objects == nil {
		r.objects = map[eventID]*sharedObject{}
	}
	r.objects[event.id] = obj
	r.order = append(r.order, event)
	r.size += event.size
	for len(r.order) > recentCapacity || r.size > recentBytes && len(r.order) > 1 {
		r.drop()
	}
	if !r.sweeping {
		r.sweeping = true
		time.AfterFunc(recentAge, r.sweep)
	}
}

// drop lets the oldest go.
func (r *recentEvents) drop() {
	delete(r.objects, r.order[0].id)
	r.size -= r.order[0].size
	r.order = r.order[1:]
}

// sweep drops what is old, and comes again as long as something is left.
func (r *recentEvents) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.order) > 0 && time.Since(r.order[0].added) >= recentAge {
		r.drop()
	}
	if r.sweeping = len(r.order) > 0; r.sweeping {
		time.AfterFunc(recentAge, r.sweep)
	} else {
		r.objects, r.order = nil, nil
	}
}

// sharedObject is an object that several watches hand out. It implements
// runtime.CacheableObject: each encoding is made once.
type sharedObject struct {
	decoded sync.Once
	obj     runtime.Object
	err     error

	attributed sync.Once
	labels     labels.Set
	fields     fields.Set
	unlabelled error

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

// attributes are what selectors look at.
func (o *sharedObject) attributes(get kstorage.AttrFunc) (labels.Set, fields.Set, error) {
	o.attributed.Do(func() { o.labels, o.fields, o.unlabelled = get(o.obj) })
	return o.labels, o.fields, o.unlabelled
}

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
