package lab

import (
	"context"
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func customResource(t *testing.T, c *cluster) {
	ns := c.namespace(t, "custom")
	c.apply(t, ns, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.e2e.shoal.test}
spec:
  group: e2e.shoal.test
  scope: Namespaced
  names: {kind: Boat, plural: boats, singular: boat, shortNames: [bt]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: Length, type: integer, jsonPath: .spec.length}]
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {length: {type: integer, minimum: 1}}}, status: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
`)
	t.Cleanup(func() {
		_, _ = c.try(context.Background(), "", tools.kubectl, "delete", "crd", "boats.e2e.shoal.test", "--wait=false")
	})
	c.kubectl(t, "wait", "--for=condition=established", "crd/boats.e2e.shoal.test", "--timeout=60s")
	boat := "{apiVersion: e2e.shoal.test/v1, kind: Boat, metadata: {name: %s}, spec: {length: %d}}"
	c.apply(t, ns, fmt.Sprintf(boat, "nina", 15))
	wants(t, c.kubectl(t, "-n", ns, "get", "bt"), "LENGTH", "nina", "15")
	c.refused(t, fmt.Sprintf(boat, "none", 0), []string{"spec.length", "greater than or equal to 1"}, "-n", ns, "create", "-f", "-")
	wants(t, c.kubectl(t, "explain", "boat.spec.length"), "integer")
}

func applyConflicts(t *testing.T, c *cluster) {
	ns := c.namespace(t, "conflicts")
	settings := "{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {colour: %s}}"
	apply := func(manager, colour string, more ...string) (string, error) {
		return c.try(t.Context(), fmt.Sprintf(settings, colour), tools.kubectl,
			append([]string{"apply", "-n", ns, "--server-side", "--field-manager", manager, "-f", "-"}, more...)...)
	}
	if _, err := apply("alice", "blue"); err != nil {
		t.Fatal(err)
	}
	out, err := apply("bob", "red")
	if err == nil {
		t.Fatal("bob took alice's field without a conflict")
	}
	wants(t, out, "conflict", `"alice"`, ".data.colour")
	if _, err := apply("bob", "red", "--force-conflicts"); err != nil {
		t.Error(err)
	}
	if colour := c.kubectl(t, "-n", ns, "get", "configmap", "settings", "-o", "jsonpath={.data.colour}"); colour != "red" {
		t.Errorf("the colour is %s", colour)
	}
}

func rolesBind(t *testing.T, c *cluster) {
	ns := c.namespace(t, "roles")
	other := c.namespace(t, "roles-other")
	c.kubectl(t, "-n", ns, "create", "serviceaccount", "reader")
	c.kubectl(t, "-n", ns, "create", "role", "reader", "--verb=get,list", "--resource=configmaps")
	c.kubectl(t, "-n", ns, "create", "rolebinding", "reader", "--role=reader", "--serviceaccount="+ns+":reader", "--user=jane")
	token := strings.TrimSpace(c.kubectl(t, "-n", ns, "create", "token", "reader"))
	// The administrator's certificate must not be sent along.
	bearer := []string{"--kubeconfig=/dev/null", "--server", c.Peers[0].API, "--insecure-skip-tls-verify", "--token", token}
	as := func(args ...string) []string { return append(append([]string{}, bearer...), args...) }
	eventually(t, soon, "the role is bound", func(context.Context) error {
		_, err := c.try(t.Context(), "", tools.kubectl, as("-n", ns, "get", "configmaps")...)
		return err
	})
	c.refused(t, "", []string{"Forbidden", "system:serviceaccount:roles:reader", "cannot list", "secrets"}, as("-n", ns, "get", "secrets")...)
	c.refused(t, "", []string{"Forbidden"}, as("-n", other, "get", "configmaps")...)
	c.refused(t, "", []string{"Forbidden", `User "jane" cannot delete`}, "--as", "jane", "-n", ns, "delete", "configmap", "kube-root-ca.crt")
	wants(t, c.kubectl(t, "--as", "jane", "-n", ns, "get", "configmaps"), "kube-root-ca.crt")
	c.refused(t, "", []string{"Unauthorized"}, "--kubeconfig=/dev/null", "--server", c.Peers[0].API, "--insecure-skip-tls-verify", "--token", "nonsense", "get", "pods")
}

func manifestRefused(t *testing.T, c *cluster) {
	ns := c.namespace(t, "invalid")
	for _, bad := range []struct{ manifest, want string }{
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: none}\nspec: {containers: []}", "spec.containers: Required value"},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: Not_A_Name}\nspec: {containers: [{name: a, image: b}]}", "metadata.name: Invalid value"},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: none}\nspec: {containers: [{name: a, image: b, imagge: c}]}", `unknown field "spec.containers[0].imagge"`},
		{"apiVersion: v1\nkind: Pudding\nmetadata: {name: none}", "no matches for kind"},
		{"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: none}\nspec: {replicas: many, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: a, image: b}]}}}", "replicas"},
		{"apiVersion: v1\nkind: Service\nmetadata: {name: none}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}", "provided IP is already allocated"},
		{"kind: [", "error"},
	} {
		c.refused(t, bad.manifest, []string{bad.want}, "-n", ns, "apply", "-f", "-")
	}
	if out := c.kubectl(t, "-n", ns, "get", "pods,deployments,services", "-o", "name"); out != "" {
		t.Errorf("something was made: %s", out)
	}
}

func namespaceDeleted(t *testing.T, c *cluster) {
	const ns = "doomed"
	c.kubectl(t, "create", "namespace", ns)
	c.apply(t, ns, web("web", 2, "doomed")+"---\n"+sh("alone", "exec e2e pause"))
	c.kubectl(t, "-n", ns, "create", "configmap", "settings")
	c.readyPods(t, soon, ns, "app=web", 2)
	c.kubectl(t, "delete", "namespace", ns, "--timeout=60s")
	if _, err := c.client.CoreV1().Namespaces().Get(t.Context(), ns, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace: %v", err)
	}
	list, err := c.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) > 0 {
		t.Errorf("%d pods are left: %v", len(list.Items), err)
	}
	c.refused(t, "", []string{"not found"}, "-n", ns, "create", "configmap", "late")
	// Its name is free again.
	c.kubectl(t, "create", "namespace", ns)
	c.kubectl(t, "delete", "namespace", ns, "--wait=false")
}
