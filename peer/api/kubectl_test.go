package api_test

import (
	"errors"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var errStill = errors.New("still there")

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: NAMESPACE, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: example.test/web:1}
`

// namespace makes a namespace for one test.
func namespace(t *testing.T, name string) {
	t.Helper()
	kubectl(t, "", "create", "namespace", name)
	account(t, name)
}

func TestKubectlVerbs(t *testing.T) {
	namespace(t, "verbs")
	manifest := strings.ReplaceAll(deployment, "NAMESPACE", "verbs")
	wantTexts(t, kubectl(t, manifest, "create", "-f", "-", "--dry-run=server"), "created (server dry run)")
	if out := kubectl(t, "", "get", "deployments", "-n", "verbs", "-o", "name"); out != "" {
		t.Errorf("dry run left %s", out)
	}
	wantTexts(t, kubectl(t, manifest, "apply", "-f", "-"), "deployment.apps/web created")
	wantTexts(t, kubectl(t, manifest, "apply", "-f", "-"), "deployment.apps/web unchanged")
	wantTexts(t, kubectl(t, "", "get", "deployments", "-n", "verbs", "-o", "wide"), "READY", "UP-TO-DATE", "example.test/web:1")
	kubectl(t, "", "scale", "-n", "verbs", "deployment/web", "--replicas=5")
	kubectl(t, "", "set", "image", "-n", "verbs", "deployment/web", "web=example.test/web:2")
	kubectl(t, "", "label", "-n", "verbs", "deployment/web", "tier=front")
	for _, patch := range [][]string{
		{"json", `[{"op":"replace","path":"/spec/revisionHistoryLimit","value":3}]`},
		{"merge", `{"spec":{"minReadySeconds":4}}`},
		{"strategic", `{"spec":{"template":{"spec":{"containers":[{"name":"web","tty":true}]}}}}`},
	} {
		kubectl(t, "", "patch", "-n", "verbs", "deployment/web", "--type", patch[0], "-p", patch[1])
	}
	d := must(admin.AppsV1().Deployments("verbs").Get(t.Context(), "web", metav1.GetOptions{}))(t)
	container := d.Spec.Template.Spec.Containers[0]
	if *d.Spec.Replicas != 5 || container.Image != "example.test/web:2" || !container.TTY || d.Labels["tier"] != "front" ||
		*d.Spec.RevisionHistoryLimit != 3 || d.Spec.MinReadySeconds != 4 {
		t.Errorf("after the changes: %+v", d.Spec)
	}
	wantTexts(t, kubectl(t, "", "describe", "-n", "verbs", "deployment/web"), "5 desired", "example.test/web:2")
	wantTexts(t, kubectl(t, "", "get", "deployments", "-A", "-l", "tier=front", "-o", "name"), "deployment.apps/web")
	kubectl(t, "", "delete", "-n", "verbs", "deployment/web", "--wait=true")
}

func TestServerSideApply(t *testing.T) {
	namespace(t, "ssa")
	manifest := strings.ReplaceAll(deployment, "NAMESPACE", "ssa")
	kubectl(t, manifest, "apply", "--server-side", "--field-manager=first", "-f", "-")
	changed := strings.ReplaceAll(manifest, "replicas: 2", "replicas: 7")
	kubectlFails(t, changed, []string{"conflict with \"first\"", ".spec.replicas"}, "apply", "--server-side", "--field-manager=second", "-f", "-")
	kubectl(t, changed, "apply", "--server-side", "--field-manager=second", "--force-conflicts", "-f", "-")
	d := must(admin.AppsV1().Deployments("ssa").Get(t.Context(), "web", metav1.GetOptions{}))(t)
	if *d.Spec.Replicas != 7 || len(d.ManagedFields) < 2 {
		t.Errorf("%d replicas, %d managers", *d.Spec.Replicas, len(d.ManagedFields))
	}
}

func TestInvalidManifestsGetAStatus(t *testing.T) {
	namespace(t, "invalid")
	manifest := strings.ReplaceAll(deployment, "NAMESPACE", "invalid")
	kubectlFails(t, strings.ReplaceAll(manifest, "replicas: 2", "replicas: 2\n  replcas: 3"),
		[]string{"strict decoding error", `unknown field "spec.replcas"`}, "apply", "-f", "-")
	kubectlFails(t, strings.ReplaceAll(manifest, "replicas: 2", "replicas: -2"),
		[]string{"is invalid", "spec.replicas", "must be greater than or equal to 0"}, "apply", "-f", "-")
	kubectlFails(t, strings.ReplaceAll(manifest, "namespace: invalid", "namespace: nowhere"),
		[]string{`namespaces "nowhere" not found`}, "apply", "-f", "-")
	kubectlFails(t, "", []string{`pods "none" not found`}, "get", "pod", "none", "-n", "invalid")
}

func TestExplain(t *testing.T) {
	wantTexts(t, kubectl(t, "", "explain", "pod.spec.containers.livenessProbe.httpGet"), "HTTPGetAction", "host", "port", "-required-")
	wantTexts(t, kubectl(t, "", "explain", "deployments", "--output=plaintext-openapiv2"), "KIND:", "Deployment")
	wantTexts(t, kubectl(t, "", "api-resources"), "deployments", "customresourcedefinitions", "leases", "ipaddresses")
	wantTexts(t, kubectl(t, "", "api-versions"), "apps/v1", "apiextensions.k8s.io/v1", "batch/v1")
}

const widgetDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.test}
spec:
  group: example.test
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1, description: How large the widget is.}
`

const widget = `
apiVersion: example.test/v1
kind: Widget
metadata: {name: one, namespace: custom}
spec: {size: 3}
`

func TestCustomResources(t *testing.T) {
	namespace(t, "custom")
	kubectl(t, widgetDefinition, "apply", "-f", "-")
	kubectl(t, "", "wait", "--for=condition=Established", "crd/widgets.example.test", "--timeout=10s")
	eventually(t, func() error { _, err := shared.Kubectl(widget, "apply", "-f", "-"); return err })
	wantTexts(t, kubectl(t, "", "get", "wd", "-n", "custom"), "SIZE", "one", "3")
	kubectlFails(t, strings.ReplaceAll(widget, "size: 3", "size: 0"), []string{"spec.size", "greater than or equal to 1"}, "apply", "-f", "-")
	kubectlFails(t, strings.ReplaceAll(widget, "size: 3", "size: 3, sise: 4"), []string{`unknown field "spec.sise"`}, "apply", "-f", "-")
	kubectl(t, strings.ReplaceAll(widget, "size: 3", "size: 9"), "apply", "--server-side", "--force-conflicts", "-f", "-")
	eventually(t, func() error {
		_, err := shared.Kubectl("", "explain", "widget.spec.size")
		return err
	})
	wantTexts(t, kubectl(t, "", "explain", "widget.spec.size"), "How large the widget is.")
	wantTexts(t, kubectl(t, "", "explain", "widget.spec.size", "--output=plaintext-openapiv2"), "How large the widget is.")
	wantTexts(t, kubectl(t, "", "get", "--raw", "/apis"), `"name":"example.test"`)
	kubectl(t, "", "delete", "crd", "widgets.example.test", "--timeout=20s")
	eventually(t, func() error {
		out, err := shared.Kubectl("", "get", "--raw", "/apis")
		if err == nil && strings.Contains(out, "example.test") {
			return errStill
		}
		return err
	})
}
