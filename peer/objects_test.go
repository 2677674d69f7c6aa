package peer

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestWhatPodsReferToIsReadWithoutAQuorum: what is stored now is taken where that can be found out, any copy where it cannot, and nothing
// where it is known that there is none.
func TestWhatPodsReferToIsReadWithoutAQuorum(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := func(code int, object any) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			if err := json.NewEncoder(w).Encode(object); err != nil {
				t.Error(err)
			}
		}
		stale := r.URL.Query().Get("resourceVersion") == "0"
		copied := metav1.ObjectMeta{Name: map[bool]string{true: "copied", false: "stored"}[stale]}
		switch {
		case r.URL.Path == "/api/v1/namespaces/ns/configmaps/gone" && !stale:
			answer(http.StatusNotFound, apierrors.NewNotFound(corev1.Resource("configmaps"), "gone").Status())
		case r.URL.Path == "/api/v1/namespaces/lost/configmaps/settings" && !stale,
			r.URL.Path == "/api/v1/namespaces/lost/services" && !stale:
			answer(http.StatusServiceUnavailable, apierrors.NewServiceUnavailable("shard 3: no quorum").Status())
		case r.URL.Path == "/api/v1/namespaces/lost/services":
			answer(http.StatusOK, corev1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}, Items: []corev1.Service{{ObjectMeta: copied}}})
		default:
			answer(http.StatusOK, corev1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"}, ObjectMeta: copied})
		}
	}))
	defer server.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{log: slog.New(slog.DiscardHandler)}
	n.client.Store(client)
	objects := n.objects()
	for namespace, want := range map[string]string{"ns": "stored", "lost": "copied"} {
		if got, err := objects.ConfigMap(t.Context(), namespace, "settings"); err != nil || got.Name != want {
			t.Errorf("in %s: %v, %v; want the %s one", namespace, got, err, want)
		}
	}
	if got, err := objects.ConfigMap(t.Context(), "ns", "gone"); !apierrors.IsNotFound(err) {
		t.Errorf("one that is known not to be there: %v, %v", got, err)
	}
	if got, err := objects.Services(t.Context(), "lost"); err != nil || len(got) != 1 || got[0].Name != "copied" {
		t.Errorf("services: %v, %v", got, err)
	}
}
