package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestOnlyThePeerDies kills one peer's process and nothing else: its containers live on, and nobody is left in it who could stop those
// that must not run twice (D8).
func TestOnlyThePeerDies(t *testing.T) {
	c := openCluster(t, 3)
	ns := c.namespace(t, "silent")
	c.apply(t, ns, statefulSet("db", 3))
	c.apply(t, ns, web("web", 3, "w"))
	stateful := c.readyPods(t, soon, ns, "app=db", 3)
	var victim *Peer
	var pod, uid string
	for _, p := range stateful {
		for _, peer := range c.Peers[1:] { // the client talks to the first
			if p.Spec.NodeName == peer.Name {
				victim, pod, uid = peer, p.Name, string(p.UID)
			}
		}
	}
	if victim == nil {
		t.Fatal("all pods of the StatefulSet are on one peer")
	}
	if len(processesOfPod(t, uid)) == 0 {
		t.Fatalf("pod %s has no process", pod)
	}
	free := processesOnNode(t, c, ns, "app=web", victim.Name)

	if err := victim.KillProcess(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	eventually(t, soon, "the pod's processes end", func(context.Context) error {
		if left := processesOfPod(t, uid); len(left) > 0 {
			return fmt.Errorf("processes %v", left)
		}
		return nil
	})
	ended := time.Since(killed)
	// It was replaced only after that: nothing of it exists yet anywhere else.
	now, err := c.client.CoreV1().Pods(ns).Get(t.Context(), pod, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if string(now.UID) != uid {
		t.Errorf("%s was replaced before its processes had ended, %s after the kill", pod, ended)
	}
	for process := range free {
		if _, err := os.Stat(filepath.Join("/proc", process)); err != nil {
			t.Errorf("process %s of a pod that may run twice was ended", process)
		}
	}
	eventually(t, soon, pod+" heals on another peer", func(ctx context.Context) error {
		now, err := c.client.CoreV1().Pods(ns).Get(ctx, pod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if string(now.UID) == uid || now.Spec.NodeName == victim.Name || !ready(now) {
			return errors.New("not yet")
		}
		return nil
	})
	t.Logf("processes ended %s after the kill, replaced after %s", ended.Round(100*time.Millisecond), time.Since(killed).Round(100*time.Millisecond))

	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := errors.Join(victim.Start(), victim.Await(ctx)); err != nil {
		t.Fatal(err)
	}
	c.readyPods(t, soon, ns, "app=db", 3)
}

// processesOnNode are the processes of a label's pods on one node.
func processesOnNode(t *testing.T, c *cluster, namespace, label, node string) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, pod := range c.readyPods(t, soon, namespace, label, 3) {
		if pod.Spec.NodeName == node {
			for _, process := range processesOfPod(t, string(pod.UID)) {
				all[process] = true
			}
		}
	}
	return all
}

// processesOfPod finds the processes in a pod's cgroup, on whichever peer.
func processesOfPod(t *testing.T, uid string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), "pod"+uid) {
			found = append(found, filepath.Base(filepath.Dir(file)))
		}
	}
	return found
}
