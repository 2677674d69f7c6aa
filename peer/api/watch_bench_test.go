package api_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// BenchmarkFanOut creates ConfigMaps of 1 KiB that 300 watches over three connections see, each with a selector, in
// protobuf. The clients, which are in the figure, only count. An op is a create that everybody has seen.
func BenchmarkFanOut(b *testing.B) {
	const connections, each = 3, 100
	name := fmt.Sprintf("fan-%d", b.N)
	_, _ = admin.CoreV1().Namespaces().Create(b.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	var seen, ended sync.WaitGroup
	for range connections {
		config := must(shared.Remote("admin", "system:masters"))(b)
		client := must(rest.HTTPClientFor(config))(b)
		for range each {
			request := must(http.NewRequestWithContext(b.Context(), http.MethodGet,
				config.Host+"/api/v1/namespaces/"+name+"/configmaps?watch=1&fieldSelector=metadata.name!%3Dkube-root-ca.crt", nil))(b)
			request.Header.Set("Accept", runtime.ContentTypeProtobuf)
			response := must(client.Do(request))(b)
			ended.Go(func() {
				defer response.Body.Close()
				reader := bufio.NewReader(response.Body)
				for frames(reader) == nil {
					seen.Done()
				}
			})
		}
	}
	payload := strings.Repeat("v", 1024)
	n := 0
	for b.Loop() {
		seen.Add(connections * each)
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", n)}, Data: map[string]string{"value": payload}}
		must(admin.CoreV1().ConfigMaps(name).Create(b.Context(), object, metav1.CreateOptions{}))(b)
		seen.Wait()
		n++
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(n*connections*each), "µs/event")
}

// frames reads one frame of a watch in protobuf: four bytes of length, and the event.
func frames(r *bufio.Reader) error {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return err
	}
	_, err := r.Discard(int(binary.BigEndian.Uint32(length[:])))
	return err
}
