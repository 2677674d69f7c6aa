package lab

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
)

// Loss is what the loss of a peer cost, counted from the kill.
type Loss struct {
	// Service is when the last failing request to the virtual IP ended: from then on none failed.
	Service time.Duration
	// Failed and Requests count the requests of one client that asks on after every answer, 20 times a second at most.
	Failed, Requests int
	// Replaced is when as many pods as before ran on peers that are alive.
	Replaced time.Duration
}

// losePeer kills a peer and shows what happens.
func (d *Demo) losePeer(ctx context.Context) error {
	victim, lost, err := d.Victim(ctx)
	if err != nil {
		return err
	}
	var loss Loss
	err = d.Lab.step(fmt.Sprintf("kill -9 of %s, its containerd, shims and %d web pods; cable cut", victim.Name, len(lost)), func() error {
		loss, err = d.Measure(ctx, victim)
		return err
	})
	if err != nil {
		return err
	}
	if err := d.show(ctx, "get", "nodes"); err != nil {
		return err
	}
	if err := d.show(ctx, "get", "pods", "-l", "app=web", "-o", "wide"); err != nil {
		return err
	}
	fmt.Fprintf(d.Out, "\n  kill → the virtual IP answers every request   %6.2f s  (%d of %d requests failed before)\n"+
		"  kill → the lost pods run elsewhere            %6.2f s\n",
		loss.Service.Seconds(), loss.Failed, loss.Requests, loss.Replaced.Seconds())
	return nil
}

// Measure kills a peer and waits until its pods run elsewhere and the virtual IP has answered for two seconds without an error.
func (d *Demo) Measure(ctx context.Context, victim *Peer) (Loss, error) {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	survivor, err := d.survivorOf(victim)
	if err != nil {
		return Loss{}, err
	}
	prober := d.startProber(ctx)
	defer prober.stop()
	killed := time.Now()
	if err := d.Lab.Cut(victim); err != nil {
		return Loss{}, err
	}
	prober.since(killed)
	replaced, err := awaitReplaced(ctx, survivor, victim.Name, killed)
	if err != nil {
		return Loss{}, err
	}
	err = wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(context.Context) (bool, error) { return prober.calm() >= 2*time.Second, nil })
	prober.stop()
	if err != nil {
		return Loss{}, fmt.Errorf("the virtual IP does not answer without errors: %w", err)
	}
	return Loss{Service: prober.lastFailure(), Failed: prober.failed, Requests: prober.requests, Replaced: replaced}, nil
}

func (d *Demo) survivorOf(victim *Peer) (kubernetes.Interface, error) {
	for n, peer := range d.Lab.Peers {
		if peer != victim && peer.Pid() != 0 {
			return d.Lab.clientFor(n)
		}
	}
	return nil, errors.New("no other peer is alive")
}

// awaitReplaced waits until the wanted number of web pods is ready on other nodes than the lost one.
func awaitReplaced(ctx context.Context, client kubernetes.Interface, lost string, since time.Time) (time.Duration, error) {
	last := "nothing was answered yet"
	for ctx.Err() == nil {
		pods, err := client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			last = err.Error()
		} else if n := readyElsewhere(pods.Items, lost); n >= 3 {
			return time.Since(since), nil
		} else {
			last = fmt.Sprintf("%d pods are ready on other peers", n)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return 0, fmt.Errorf("the lost pods were not replaced: %s", last)
}

func readyElsewhere(pods []corev1.Pod, lost string) (n int) {
	for _, pod := range pods {
		if pod.Spec.NodeName == lost || pod.DeletionTimestamp != nil {
			continue
		}
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
				n++
			}
		}
	}
	return n
}

// prober asks the virtual IP again and again, each time over a new connection.
type prober struct {
	cancel context.CancelFunc
	ended  chan struct{}

	lock             sync.Mutex
	killed           time.Time
	failedAt         time.Time
	failed, requests int
}

// probeTimeout is when a client counts a request as failed.
const probeTimeout = 500 * time.Millisecond

func (d *Demo) startProber(ctx context.Context) *prober {
	ctx, cancel := context.WithCancel(ctx)
	p := &prober{cancel: cancel, ended: make(chan struct{}), killed: time.Now()}
	go func() {
		defer close(p.ended)
		pace := time.NewTicker(50 * time.Millisecond)
		defer pace.Stop()
		for ctx.Err() == nil {
			_, err := d.fetch(ctx, probeTimeout)
			p.note(err, ctx.Err() != nil)
			select {
			case <-ctx.Done():
			case <-pace.C:
			}
		}
	}()
	return p
}

func (p *prober) note(err error, ending bool) {
	p.lock.Lock()
	defer p.lock.Unlock()
	if ending {
		return
	}
	p.requests++
	if err != nil {
		p.failed++
		p.failedAt = time.Now()
	}
}

// since sets the moment of the kill; what was asked before does not count.
func (p *prober) since(killed time.Time) {
	p.lock.Lock()
	defer p.lock.Unlock()
	p.killed = killed
}

// calm is for how long no request has failed.
func (p *prober) calm() time.Duration {
	p.lock.Lock()
	defer p.lock.Unlock()
	if p.failedAt.After(p.killed) {
		return time.Since(p.failedAt)
	}
	return time.Since(p.killed)
}

// lastFailure is when the last request failed, after the kill; zero when none did.
func (p *prober) lastFailure() time.Duration {
	p.lock.Lock()
	defer p.lock.Unlock()
	return max(0, p.failedAt.Sub(p.killed))
}

func (p *prober) stop() {
	p.cancel()
	<-p.ended
}
