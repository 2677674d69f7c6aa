package api_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"shoal/peer/api"
)

// A list without a limit that is longer than the server's pages is the same, in every form, as one read in pages.
func TestLongLists(t *testing.T) {
	namespace(t, "long")
	var changes []api.Change
	for i := range 1300 {
		object := configMap("long", fmt.Sprintf("c%04d", i))
		object.Data = map[string]string{"text": fmt.Sprintf("number %d \"quoted\" ]}", i)}
		changes = append(changes, api.Change{Verb: api.Create, Object: object})
	}
	if _, errs := shared.Server.Commit(t.Context(), "tester", changes); slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		t.Fatal(errs)
	}
	var want []corev1.ConfigMap
	for options := (metav1.ListOptions{Limit: 700}); ; {
		page := must(admin.CoreV1().ConfigMaps("long").List(t.Context(), options))(t)
		want = append(want, page.Items...)
		if options.Continue = page.Continue; page.Continue == "" {
			break
		}
	}
	config := must(shared.Remote("admin", "system:masters"))(t)
	for _, form := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		config := rest.CopyConfig(config)
		config.AcceptContentTypes, config.ContentType = form, form
		client := must(kubernetes.NewForConfig(config))(t)
		for _, version := range []string{"", "0"} {
			got := must(client.CoreV1().ConfigMaps("long").List(t.Context(), metav1.ListOptions{ResourceVersion: version}))(t)
			if got.Continue != "" || got.RemainingItemCount != nil || got.ResourceVersion == "" {
				t.Errorf("%s at %q: metadata %+v", form, version, got.ListMeta)
			}
			if !apiequality.Semantic.DeepEqual(got.Items, want) {
				t.Errorf("%s at %q: %d items differ from the %d read in pages", form, version, len(got.Items), len(want))
			}
		}
	}
	checkJSONList(t, config)
}

// checkJSONList looks at the bytes: the same fields as a short list, in the same order.
func checkJSONList(t *testing.T, config *rest.Config) {
	t.Helper()
	client := must(rest.HTTPClientFor(config))(t)
	get := func(query string) []byte {
		response := must(client.Get(config.Host + "/api/v1/namespaces/long/configmaps" + query))(t)
		defer response.Body.Close()
		body := must(io.ReadAll(response.Body))(t)
		if response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s: %s", query, response.Status, body)
		}
		return body
	}
	long, short := get(""), get("?limit=1300")
	if !json.Valid(long) || !bytes.Equal(versionless(long), versionless(short)) {
		t.Errorf("the long list begins with %.200s, the short one with %.200s", long, short)
	}
}

// versionless cuts the list's metadata, whose revision may differ, out of it.
func versionless(list []byte) []byte {
	from, to := bytes.Index(list, []byte(`"metadata"`)), bytes.Index(list, []byte(`"items"`))
	return append(bytes.Clone(list[:from]), list[to:]...)
}

// Objects of etcd's size pass, into the store and in lists and watches out of it; larger ones are refused as behind
// upstream's server.
func TestLargeObjects(t *testing.T) {
	namespace(t, "large")
	pods := admin.CoreV1().Pods("large")
	pod := func(name string, size int) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "image", Args: []string{strings.Repeat("x", size)}}}},
		}
	}
	list := must(pods.List(t.Context(), metav1.ListOptions{}))(t)
	w := must(pods.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion}))(t)
	defer w.Stop()
	const size = 1530 << 10
	must(pods.Create(t.Context(), pod("fits", size), metav1.CreateOptions{}))(t)
	if got := nextEvent(t, w).Object.(*corev1.Pod); len(got.Spec.Containers[0].Args[0]) != size {
		t.Errorf("the watch brought %d bytes", len(got.Spec.Containers[0].Args[0]))
	}
	if got := must(pods.List(t.Context(), metav1.ListOptions{}))(t); len(got.Items) != 1 || len(got.Items[0].Spec.Containers[0].Args[0]) != size {
		t.Errorf("the list has %d items", len(got.Items))
	}
	_, err := pods.Create(t.Context(), pod("big", 1537<<10), metav1.CreateOptions{})
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != http.StatusInternalServerError || err.Error() != "etcdserver: request is too large" {
		t.Errorf("an object beyond the limit: %v", err)
	}
	if _, err = pods.Create(t.Context(), pod("body", 4<<20), metav1.CreateOptions{}); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("a body beyond upstream's limit: %v", err)
	}
}
