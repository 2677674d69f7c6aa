package fleet

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
)

// Disturbance is one of the three patterns that break operators (Sun and others, "Automatic Reliability Testing for Cluster Management
// Controllers", OSDI 2022).
type Disturbance string

// The patterns, and none.
const (
	Undisturbed Disturbance = "undisturbed"
	Crashed     Disturbance = "crashed between two writes"
	Blinded     Disturbance = "missed events"
	Stale       Disturbance = "read what is old"
)

// operatorAddress is the operator's own, so that its network can be cut.
var operatorAddress = netip.MustParseAddr("198.51.100.2")

// operated is an operator under a disturbance in a namespace of its own.
type operated struct {
	fleet     *Fleet
	user      kubernetes.Interface
	namespace string
	edges     bool
	pattern   Disturbance
	crashes   atomic.Int64
}

const ringName = "r"

// play tells the operator what to do, disturbs it meanwhile, and returns the state in which it comes to rest, at most after patience.
func (o *operated) play(ctx context.Context, patience time.Duration) ([]string, error) {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.namespace}}
	if _, err := o.user.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	ring := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: ringName, Labels: map[string]string{ringLabel: isRing}}, Data: map[string]string{ringSize: "3"}}
	if _, err := o.user.CoreV1().ConfigMaps(o.namespace).Create(ctx, ring, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	working, stop := context.WithCancel(ctx)
	stopped := o.work(working, o.pattern == Crashed)
	if err := pause(ctx, 3*time.Second); err != nil {
		stop()
		<-stopped
		return nil, err
	}
	stop, stopped = o.begin(ctx, stop, stopped)
	defer func() { stop(); <-stopped }()
	for _, step := range []func() error{
		func() error { return o.scale(ctx, 1) },
		func() error { return o.scale(ctx, 4) },
		func() error {
			err := o.user.CoreV1().ConfigMaps(o.namespace).Delete(ctx, memberName(ringName, 0), metav1.DeleteOptions{})
			return err
		},
		func() error { return o.scale(ctx, 2) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
		if err := pause(ctx, 2*time.Second); err != nil {
			return nil, err
		}
	}
	o.end()
	return o.rest(ctx, patience)
}

// begin disturbs the operator, which may be another one from then on.
func (o *operated) begin(ctx context.Context, stop context.CancelFunc, stopped chan struct{}) (context.CancelFunc, chan struct{}) {
	machines := o.fleet.Machines()
	switch o.pattern {
	case Blinded:
		for _, m := range machines {
			o.fleet.Network.Cut(m.Address, operatorAddress, true)
		}
	case Stale:
		o.fleet.split(machines[2:], true)
		stop()
		<-stopped
		working, stopAgain := context.WithCancel(ctx)
		return stopAgain, o.work(working, false)
	}
	return stop, stopped
}

// end ends the disturbance.
func (o *operated) end() {
	machines := o.fleet.Machines()
	for _, m := range machines {
		o.fleet.Network.Cut(m.Address, operatorAddress, false)
	}
	if o.pattern == Stale {
		o.fleet.split(machines[2:], false)
	}
}

// work runs the operator until ctx ends, and again after each crash. The channel is closed when it has ended.
func (o *operated) work(ctx context.Context, crash bool) chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			life, die := context.WithCancel(ctx)
			config, err := o.config(die, crash)
			if err == nil {
				err = runOperator(life, config, o.namespace, o.edges)
			}
			die()
			if err != nil || crash {
				_ = pause(ctx, 300*time.Millisecond) // until somebody starts it again
			}
		}
	}()
	return done
}

// config is the operator's way to the API. It reads from the third peer and writes through the first.
func (o *operated) config(die context.CancelFunc, crash bool) (*rest.Config, error) {
	machines := o.fleet.Machines()
	config, err := o.fleet.Config(machines[2])
	if err != nil {
		return nil, err
	}
	other, err := o.fleet.Config(machines[0])
	if err != nil {
		return nil, err
	}
	config.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
		return o.fleet.Network.dial(ctx, operatorAddress, address)
	}
	writes := 0
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			if request.Method == http.MethodGet {
				if o.pattern == Stale {
					request = ofAnyAge(request)
				}
				return next.RoundTrip(request)
			}
			request = request.Clone(request.Context())
			request.URL.Host = strings.TrimPrefix(other.Host, "https://")
			answer, err := next.RoundTrip(request)
			if err == nil && answer.StatusCode < 300 {
				if writes++; crash && writes%2 == 1 {
					o.crashes.Add(1)
					die()
				}
			}
			return answer, err
		})
	})
	return config, nil
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (r roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return r(request) }

// ofAnyAge has a read answered from whatever the peer holds, as old clients ask for it.
func ofAnyAge(request *http.Request) *http.Request {
	query := request.URL.Query()
	if query.Get("resourceVersion") != "" {
		return request
	}
	query.Set("resourceVersion", "0")
	request = request.Clone(request.Context())
	request.URL.RawQuery = query.Encode()
	return request
}

// scale is what the user does.
func (o *operated) scale(ctx context.Context, size int) error {
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		ring, err := o.user.CoreV1().ConfigMaps(o.namespace).Get(ctx, ringName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		ring.Data[ringSize] = strconv.Itoa(size)
		_, err = o.user.CoreV1().ConfigMaps(o.namespace).Update(ctx, ring, metav1.UpdateOptions{})
		return err
	})
}

// rest waits until nothing has changed for six seconds.
func (o *operated) rest(ctx context.Context, patience time.Duration) ([]string, error) {
	var last []string
	begun, since := time.Now(), time.Now()
	for time.Since(begun) < patience {
		now, err := ends(ctx, o.user, o.namespace)
		if err != nil {
			return nil, err
		}
		if differ(last, now) != "" {
			last, since = now, time.Now()
		}
		if time.Since(since) > 6*time.Second {
			return last, nil
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s after the end of the disturbance %q the operator still changes something", patience, o.pattern)
}
