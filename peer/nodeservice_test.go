package peer

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"shoal/consensus/store"
	"shoal/runtime/pods"
)

// FuzzNodeService answers what other peers may send to a node: claims of room and renewals of leases. Whatever they are, nothing panics,
// the node gives no more than it has, and a peer renews no lease but its own.
func FuzzNodeService(f *testing.F) {
	for _, seed := range []struct{ path, body string }{
		{claimsPath, `{"shard":1,"claims":[{"podUID":"u","namespace":"n","name":"p","requests":{"cpu":"1","memory":"1Gi"},"hostPorts":[{"port":80,"protocol":"TCP"}],"pod":{"spec":{"containers":[{"name":"c"}]}}}]}`},
		{claimsPath, `{"claims":[{"podUID":"a","requests":{"cpu":"-9"}},{"podUID":"b","requests":{"cpu":"12"}}]}`},
		{claimsPath, `{"claims":[{"podUID":"a","requests":{"cpu":"9223372036854775807"}},{"podUID":"a","requests":{"cpu":"1e30"}},{"podUID":"","requests":{"memory":"-1e30Ei"}}]}`},
		{claimsPath, `{"claims":[{"podUID":"a","hostPorts":[{"port":-1},{"port":70000,"protocol":"x"}]},null]}`},
		{leasePath, `{"node":"mine","now":"2026-01-01T00:00:00Z","quarantined":[1,2,18446744073709551615]}`},
		{leasePath, `{"node":"other","now":"9999-12-31T23:59:59Z"}`},
		{leasePath, `{"node":"mine","now":"0001-01-01T00:00:00Z"}`},
		{leasePath, `{"node":"mine","now":"x"}`},
		{leasePath, `[`},
	} {
		f.Add(seed.path, seed.body)
	}
	f.Fuzz(func(t *testing.T, path, body string) {
		ledger := pods.NewLedger()
		ledger.SetCapacity(pods.Capacity{Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("10"),
		}})
		ledger.SetRunning(nil)
		table := &renewals{}
		table.renew("third", time.Now(), 0, nil)
		mux := http.NewServeMux()
		mux.Handle("POST "+claimsPath, answerJSON(func(_ *http.Request, in claimRequest) (claimAnswer, error) {
			return claimAnswer{Answers: ledger.Claim(in.Claims, time.Now()), Foreign: ledger.Held(time.Now())}, nil
		}))
		mux.Handle("POST "+leasePath, leaseHandler(table, func() bool { return true }, func(r *http.Request) string { return callerOf(r) }, func(store.Revision) store.Revision { return 0 }))
		if path != claimsPath && path != leasePath {
			path = claimsPath
		}
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), caller{}, "mine")))
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest && w.Code != http.StatusServiceUnavailable {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
		given := resource.Quantity{}
		for _, held := range ledger.Held(time.Now()) {
			if cpu := held.Requests[corev1.ResourceCPU]; cpu.Sign() > 0 {
				given.Add(cpu)
			}
		}
		if given.Cmp(resource.MustParse("4")) > 0 {
			t.Fatalf("4 processors, %s given", given.String())
		}
		for node := range table.snapshot() {
			if node != "mine" && node != "third" {
				t.Fatalf("the lease of %q was renewed", node)
			}
		}
		if len(table.quarantined("mine")) > store.MaxShard+1 {
			t.Fatal("more replicas are quarantined than there can be shards")
		}
	})
}

func TestRequestsOfPeersAreBounded(t *testing.T) {
	handler := answerJSON(func(_ *http.Request, in claimRequest) (claimAnswer, error) { return claimAnswer{}, nil })
	body := `{"claims":[` + strings.Repeat(`{},`, maxNodeMessage/3) + `{}]}`
	w := httptest.NewRecorder()
	handler(w, httptest.NewRequest(http.MethodPost, claimsPath, strings.NewReader(body)))
	if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "too large") {
		t.Errorf("%d bytes: %d %s", len(body), w.Code, w.Body)
	}
}

// TestPeersOfOtherVersionsUnderstandEachOther: what a newer peer adds to a claim or its answer is passed over, what an older one leaves out
// is empty, and one that knows no claims gives an error, which the leader takes for silence.
func TestPeersOfOtherVersionsUnderstandEachOther(t *testing.T) {
	bodies := map[string]string{
		"of this version":  `{"answers":[{"podUID":"u","granted":true}],"foreign":[{"podUID":"f","namespace":"n","name":"p","requests":{"cpu":"1"}}]}`,
		"of a newer one":   `{"answers":[{"podUID":"u","granted":true,"until":"2030"}],"foreign":[{"podUID":"f","namespace":"n","name":"p","requests":{"cpu":"1"},"weight":{"x":1}}],"more":[1]}`,
		"of an older one":  `{"answers":[{"podUID":"u","granted":true}]}`,
		"of a strange one": `{"answers":[]}`,
		"without claims":   "",
	}
	for name, body := range bodies {
		t.Run(name, func(t *testing.T) {
			var asked claimRequest
			mux := http.NewServeMux()
			if body != "" {
				mux.Handle("POST "+claimsPath, answerJSON(func(_ *http.Request, in claimRequest) (json.RawMessage, error) {
					asked = in
					return json.RawMessage(body), nil
				}))
			}
			server := httptest.NewServer(mux)
			defer server.Close()
			client := newNodeClient(func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", server.Listener.Addr().String())
			})
			answer, err := client.claim(t.Context(), "peer", claimRequest{Shard: 3, Claims: []pods.Claim{{PodUID: "u"}}})
			switch name {
			case "of a strange one", "without claims":
				if err == nil {
					t.Errorf("no error: %+v", answer)
				}
				return
			case "of an older one":
				if len(answer.Foreign) != 0 {
					t.Errorf("it reports %+v", answer.Foreign)
				}
			default:
				if usage := usageOf("n", answer.Foreign); usage.Granted.MilliCPU != 1000 || usage.Granted.Pods != 1 {
					t.Errorf("it reports %+v", usage)
				}
			}
			if err != nil || !answer.Answers[0].Granted || asked.Shard != 3 {
				t.Errorf("%+v, %v", answer, err)
			}
		})
	}
	w := httptest.NewRecorder()
	newer := strings.NewReader(`{"shard":1,"claims":[{"podUID":"u","namespace":"n","name":"p","urgency":7}],"epoch":9}`)
	answerJSON(func(_ *http.Request, in claimRequest) (claimAnswer, error) {
		return claimAnswer{Answers: []pods.Answer{{PodUID: in.Claims[0].PodUID, Granted: true}}}, nil
	})(w, httptest.NewRequest(http.MethodPost, claimsPath, newer))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"granted":true`) {
		t.Errorf("a newer peer's claim: %d %s", w.Code, w.Body)
	}
}
