package api_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fakeKubelet answers each request with its node and path, and echoes what comes over an upgraded connection.
func fakeKubelet(node string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			fmt.Fprintf(w, "%s %s", node, r.URL.Path)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(buffered, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
		_ = buffered.Flush()
		line, err := buffered.ReadString('\n')
		if err == nil {
			fmt.Fprintf(conn, "%s heard %s", node, line)
		}
	})
}

func TestExecStreamsThroughToTheNode(t *testing.T) {
	namespace(t, "streams")
	must(admin.CoreV1().Pods("streams").Create(t.Context(), boundPod("streams", "target", "here"), metav1.CreateOptions{}))(t)
	config := must(shared.Remote("admin", "system:masters"))(t)
	pair := must(tls.X509KeyPair(config.CertData, config.KeyData))(t)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(config.CAData)
	address := strings.TrimPrefix(shared.URL, "https://")
	conn := must(tls.Dial("tcp", address, &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, NextProtos: []string{"http/1.1"}}))(t)
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /api/v1/namespaces/streams/pods/target/exec?command=sh&stdin=true HTTP/1.1\r\nHost: %s\r\n"+
		"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n", address)
	reader := bufio.NewReader(conn)
	response := must(http.ReadResponse(reader, nil))(t)
	if response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(response.Status)
	}
	fmt.Fprintln(conn, "hello")
	if line := must(reader.ReadString('\n'))(t); line != "here heard hello\n" {
		t.Errorf("got %q", line)
	}
}

func TestPodSecurity(t *testing.T) {
	namespace(t, "restricted")
	kubectl(t, "", "label", "namespace", "restricted", "pod-security.kubernetes.io/enforce=restricted")
	eventually(t, func() error {
		_, err := admin.CoreV1().Pods("restricted").Create(t.Context(), boundPod("restricted", "loose", ""), metav1.CreateOptions{})
		if err == nil {
			_ = admin.CoreV1().Pods("restricted").Delete(t.Context(), "loose", *metav1.NewDeleteOptions(0))
			return errStill
		}
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "PodSecurity") {
			t.Fatal(err)
		}
		return nil
	})
}
