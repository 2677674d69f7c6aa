package peer

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"shoal/placement"
)

// events records what decisions have to say, each under the component that users know as its source.
type events struct {
	from func(component string) record.EventRecorder
	made map[string]record.EventRecorder
}

func newEvents(from func(component string) record.EventRecorder) events {
	return events{from: from, made: map[string]record.EventRecorder{}}
}

func (e events) record(event placement.Event) {
	recorder := e.made[event.Component]
	if recorder == nil {
		recorder = e.from(event.Component)
		e.made[event.Component] = recorder
	}
	recorder.Event(event.Regarding, event.Type, event.Reason, event.Message)
}

// recorders writes events into the namespaces of the objects that they are about. It is open until the returned function is called.
func (p *Peer) recorders(ctx context.Context) (from func(component string) record.EventRecorder, end func(), err error) {
	client, err := kubernetes.NewForConfig(p.api.Loopback())
	if err != nil {
		return nil, nil, err
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return func(component string) record.EventRecorder {
		return broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component, Host: p.self.Name})
	}, broadcaster.Shutdown, nil
}
