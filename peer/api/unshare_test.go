package api

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// TestUnsharedWatchesEnd: a watch that is stopped ends, and so does its source, although nobody takes its last event. The bubble waits for
// its goroutine.
func TestUnsharedWatchesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := watch.NewFake()
		events := unshare(t.Context(), source)
		source.Add(&corev1.Pod{})
		if event := <-events.ResultChan(); event.Type != watch.Added {
			t.Errorf("it began with %v", event)
		}
		source.Modify(&corev1.Pod{}) // which is not read
		synctest.Wait()
		events.Stop()
		synctest.Wait()
		if !source.IsStopped() {
			t.Error("the source was not stopped")
		}
	})
}

// TestUnsharedWatchesEndWithTheirSource: the reader is told of the end by the end of the channel, after the last event.
func TestUnsharedWatchesEndWithTheirSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := watch.NewFakeWithChanSize(1, false)
		source.Error(&metav1.Status{Message: "gone"})
		source.Stop()
		events := unshare(t.Context(), source)
		if event, open := <-events.ResultChan(); !open || event.Type != watch.Error {
			t.Errorf("got %v, %t", event, open)
		}
		if event, open := <-events.ResultChan(); open {
			t.Errorf("after the end came %v", event)
		}
	})
}
