package api_test

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"shoal/peer/api"
)

// BenchmarkLongList reads 20,000 pods of 3 KB in one list, in protobuf, and tells the most that the process had on its
// heap meanwhile as a multiple of what it had before: without a limit, and with a limit beyond their number, which
// keeps the server from going through pages.
func BenchmarkLongList(b *testing.B) {
	const pods, batch = 20_000, 500
	must(admin.CoreV1().Namespaces().Create(b.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "crowd"}}, metav1.CreateOptions{}))(b)
	must(admin.CoreV1().ServiceAccounts("crowd").Create(b.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}))(b)
	for first := 0; first < pods; first += batch {
		var changes []api.Change
		for i := first; i < first+batch; i++ {
			changes = append(changes, api.Change{Verb: api.Create, Object: &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "crowd", Name: fmt.Sprintf("p%05d", i), Annotations: map[string]string{"text": strings.Repeat(fmt.Sprintf("%07d ", i), 300)}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "image"}}},
			}})
		}
		_, errs := shared.Server.Commit(b.Context(), "bench", changes)
		for _, err := range errs {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(25)) // as the peer has it with a large store
	config := must(shared.Remote("admin", "system:masters"))(b)
	client := must(rest.HTTPClientFor(config))(b)
	for name, query := range map[string]string{"pages": "", "whole": "?limit=1000000"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				debug.FreeOSMemory()
				before, most := heapWhile(func() {
					request := must(http.NewRequestWithContext(b.Context(), http.MethodGet, config.Host+"/api/v1/pods"+query, nil))(b)
					request.Header.Set("Accept", "application/vnd.kubernetes.protobuf")
					response := must(client.Do(request))(b)
					defer response.Body.Close()
					if size := must(io.Copy(io.Discard, response.Body))(b); size < pods*2400 {
						b.Fatalf("%s with %d bytes", response.Status, size)
					}
				})
				b.ReportMetric(most/before, "x-idle-heap")
				b.ReportMetric(before/(1<<20), "MiB-idle-heap")
			}
		})
	}
}

// heapWhile is the size of the heap, garbage included, before and at most during do.
func heapWhile(do func()) (before, most float64) {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() float64 {
		metrics.Read(sample)
		return float64(sample[0].Value.Uint64())
	}
	runtime.GC()
	before = read()
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			most = max(most, read())
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	do()
	close(done)
	watching.Wait()
	return before, most
}
