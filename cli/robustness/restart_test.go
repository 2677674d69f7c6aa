package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/cli/lab"
	"shoal/sim/clients"
)

// TestPlannedRestartsCostNoRequest restarts all peers, one after another. Meanwhile two kinds of users work: one runs commands with a
// kubeconfig that lists all peers, as an administrator would; the other is an unmodified client of a peer other than the one that
// restarts. No request of either may fail.
func TestPlannedRestartsCostNoRequest(t *testing.T) {
	l := openLab(t)
	u := newUsers(t, l)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	for n := range 2 {
		running.Go(func() { u.command(ctx, n) })
	}
	for n := range 6 {
		running.Go(func() { u.plain(ctx, n) })
	}
	n := newNemesis(l, t.Logf)
	for i, h := range n.hosts {
		u.avoid(i)
		begun := time.Now()
		if err := h.restart(t.Context()); err != nil {
			t.Error(err)
		}
		if err := h.awaitUp(t.Context()); err != nil {
			t.Error(err)
		}
		t.Logf("%s was back after %s", h.peer.Name, time.Since(begun).Round(time.Millisecond))
	}
	stop()
	running.Wait()
	t.Logf("%d commands; %d plain requests, the longest of which took %s", u.commands.Load(), u.requests.Load(), time.Duration(u.longest.Load()))
	if u.commands.Load() < 5 || u.requests.Load() < 200 {
		t.Error("that is too little to prove anything")
	}
}

// users are those who must notice nothing.
type users struct {
	t          *testing.T
	lab        *lab.Lab
	namespaces []string
	clients    []kubernetes.Interface

	// restarting is the index of the peer that nobody may be using now; using counts the requests that are under way through each.
	lock       sync.RWMutex
	restarting int

	commands, requests, longest atomic.Int64
}

func newUsers(t *testing.T, l *lab.Lab) *users {
	t.Helper()
	u := &users{t: t, lab: l, restarting: -1}
	for i := range l.Peers {
		u.clients = append(u.clients, clientOf(t, l, i))
	}
	for i := range 8 {
		name := fmt.Sprintf("users-%d", i)
		u.namespaces = append(u.namespaces, name)
		if _, err := u.clients[0].CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// avoid lets the requests through a peer end, and sends no more there until the next call.
func (u *users) avoid(peer int) {
	u.lock.Lock()
	defer u.lock.Unlock()
	u.restarting = peer
}

// command runs one command after another, each with its own choice of a peer that answers.
func (u *users) command(ctx context.Context, n int) {
	for i := 0; ctx.Err() == nil; i++ {
		namespace := u.namespaces[(n+2*i)%len(u.namespaces)]
		name := fmt.Sprintf("command-%d-%d", n, i)
		for _, args := range [][]string{
			{"create", "configmap", name, "-n", namespace, "--from-literal=a=b"}, {"get", "configmap", name, "-n", namespace}, {"delete", "configmap", name, "-n", namespace},
		} {
			// One that has begun may end, so it knows nothing of ctx.
			command := exec.Command(peerBinary, args...)
			command.Env = append(os.Environ(), "KUBECONFIG="+u.lab.Kubeconfig, "HOME="+u.lab.Dir)
			begun := time.Now()
			if out, err := command.CombinedOutput(); err != nil {
				u.t.Errorf("at %s, after %s: peer %v: %v: %s", begun.Format("15:04:05.000"), time.Since(begun).Round(time.Millisecond), args, err, out)
			}
			u.commands.Add(1)
		}
	}
}

// plain makes one request after another, without repeating any, through a peer that is not restarting.
func (u *users) plain(ctx context.Context, n int) {
	for i := 0; ctx.Err() == nil; i++ {
		u.round(context.WithoutCancel(ctx), n, i)
		clients.Sleep(ctx, 10*time.Millisecond)
	}
}

// round creates, reads, changes and deletes an object.
func (u *users) round(ctx context.Context, n, i int) {
	namespace := u.namespaces[(n+i)%len(u.namespaces)]
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("plain-%d-%d", n, i)}, Data: map[string]string{"a": "b"}}
	steps := []func(kubernetes.Interface) error{
		func(c kubernetes.Interface) (err error) {
			object, err = c.CoreV1().ConfigMaps(namespace).Create(ctx, object, metav1.CreateOptions{})
			return err
		},
		func(c kubernetes.Interface) error {
			_, err := c.CoreV1().ConfigMaps(namespace).Get(ctx, object.Name, metav1.GetOptions{})
			return err
		},
		func(c kubernetes.Interface) (err error) {
			object.Data["a"] = "c"
			object, err = c.CoreV1().ConfigMaps(namespace).Update(ctx, object, metav1.UpdateOptions{})
			return err
		},
		func(c kubernetes.Interface) error {
			_, err := c.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{Limit: 5})
			return err
		},
		func(c kubernetes.Interface) error {
			return c.CoreV1().ConfigMaps(namespace).Delete(ctx, object.Name, metav1.DeleteOptions{})
		},
	}
	for number, step := range steps {
		if err := u.through(n+i, number, step); err != nil {
			return // the next steps would fail for the same reason
		}
	}
}

func (u *users) through(n, number int, step func(kubernetes.Interface) error) error {
	u.lock.RLock()
	defer u.lock.RUnlock()
	peer := n % len(u.clients)
	if peer == u.restarting {
		peer = (peer + 1) % len(u.clients)
	}
	begun := time.Now()
	err := step(u.clients[peer])
	took := time.Since(begun)
	if err != nil {
		u.t.Errorf("at %s, after %s: step %d through %s: %v", begun.Format("15:04:05.000"), took.Round(time.Millisecond), number, u.lab.Peers[peer].Name, err)
	}
	u.requests.Add(1)
	for {
		longest := u.longest.Load()
		if int64(took) <= longest || u.longest.CompareAndSwap(longest, int64(took)) {
			return err
		}
	}
}
