package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"shoal/cli/lab"
	"shoal/internal/polling"
)

// openLab opens a lab of three peers, which is closed with the test.
func openLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.Open(t.Context(), lab.Config{Peers: 3, Binary: peerBinary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t, l)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// keepLogs saves the peers' logs from being removed with the lab.
func keepLogs(t *testing.T, l *lab.Lab) {
	dir, err := os.MkdirTemp("", "shoal-failed-")
	if err != nil {
		return
	}
	for _, peer := range l.Peers {
		if text, err := os.ReadFile(peer.Log); err == nil {
			_ = os.WriteFile(filepath.Join(dir, peer.Name+".log"), text, 0o600)
		}
	}
	t.Logf("the peers' logs are kept in %s", dir)
}

// clientOf is a client of one peer.
func clientOf(t *testing.T, l *lab.Lab, n int) kubernetes.Interface {
	t.Helper()
	config, err := l.Config(n)
	if err != nil {
		t.Fatal(err)
	}
	config.Timeout = 30 * time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// await asks again until there is no complaint.
func await(t *testing.T, what string, check func() error) {
	t.Helper()
	polling.Until(t, 100*time.Millisecond, startLimit, what, func(context.Context) error { return check() })
}
