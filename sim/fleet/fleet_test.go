package fleet

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestThreePeersFormACluster(t *testing.T) {
	dir := t.TempDir()
	real := time.Now()
	synctest.Test(t, func(t *testing.T) {
		f := Open(dir, 1, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		defer f.Close()
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if err := f.Grow(ctx, 3); err != nil {
			t.Fatal(err)
		}
		t.Log("three peers after", time.Since(begun))
		client, err := f.Client(f.Machines()[2])
		if err != nil {
			t.Fatal(err)
		}
		nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Log(len(nodes.Items), "nodes")
		time.Sleep(time.Minute)
	})
	t.Log("real", time.Since(real))
}
