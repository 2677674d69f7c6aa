package api_test

import (
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

func TestRoles(t *testing.T) {
	namespace(t, "roles")
	alice := must(kubernetes.NewForConfig(must(shared.Remote("alice", "devs"))(t)))(t)
	if _, err := alice.CoreV1().ConfigMaps("roles").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("before a role: %v, want Forbidden", err)
	}
	kubectl(t, "", "create", "role", "reader", "-n", "roles", "--verb=get,list,watch", "--resource=configmaps")
	kubectl(t, "", "create", "rolebinding", "devs", "-n", "roles", "--role=reader", "--group=devs")
	eventually(t, func() error {
		_, err := alice.CoreV1().ConfigMaps("roles").List(t.Context(), metav1.ListOptions{})
		return err
	})
	if _, err := alice.CoreV1().ConfigMaps("roles").Create(t.Context(), configMap("roles", "a"), metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("create with that role: %v, want Forbidden", err)
	}
	if _, err := alice.CoreV1().Secrets("roles").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("secrets with that role: %v, want Forbidden", err)
	}
	wantTexts(t, kubectl(t, "", "auth", "can-i", "list", "configmaps", "-n", "roles", "--as=alice", "--as-group=devs"), "yes")
}

func TestServiceAccountTokens(t *testing.T) {
	namespace(t, "tokens")
	kubectl(t, "", "create", "role", "reader", "-n", "tokens", "--verb=list", "--resource=configmaps")
	kubectl(t, "", "create", "rolebinding", "default", "-n", "tokens", "--role=reader", "--serviceaccount=tokens:default")
	token := strings.TrimSpace(kubectl(t, "", "create", "token", "default", "-n", "tokens"))
	config := must(shared.Remote(""))(t)
	config.BearerToken = token
	client := must(kubernetes.NewForConfig(config))(t)
	who := must(client.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}))(t)
	if who.Status.UserInfo.Username != "system:serviceaccount:tokens:default" {
		t.Errorf("I am %s", who.Status.UserInfo.Username)
	}
	eventually(t, func() error {
		_, err := client.CoreV1().ConfigMaps("tokens").List(t.Context(), metav1.ListOptions{})
		return err
	})
	if _, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("nodes: %v, want Forbidden", err)
	}
	config.BearerToken = token[:len(token)-4] + "AAAA"
	forged := must(kubernetes.NewForConfig(config))(t)
	if _, err := forged.CoreV1().ConfigMaps("tokens").List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("forged token: %v, want Unauthorized", err)
	}
}

// TestNodesSeeOnlyTheirOwn uses the in-process client of a node agent: the node authorizer and NodeRestriction hold for it.
func TestNodesSeeOnlyTheirOwn(t *testing.T) {
	namespace(t, "noded")
	for _, name := range []string{"mine", "other"} {
		must(admin.CoreV1().Secrets("noded").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(t)
	}
	pod := boundPod("noded", "reader", "agent")
	pod.Spec.Volumes = []corev1.Volume{{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "mine"}}}}
	must(admin.CoreV1().Pods("noded").Create(t.Context(), pod, metav1.CreateOptions{}))(t)

	node := must(kubernetes.NewForConfig(shared.Server.LoopbackAs("system:node:agent", "system:nodes")))(t)
	must(node.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "agent"}}, metav1.CreateOptions{}))(t)
	if _, err := node.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "stranger"}}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("another's Node: %v, want Forbidden", err)
	}
	eventually(t, func() error {
		_, err := node.CoreV1().Secrets("noded").Get(t.Context(), "mine", metav1.GetOptions{})
		return err
	})
	if _, err := node.CoreV1().Secrets("noded").Get(t.Context(), "other", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("secret of no pod here: %v, want Forbidden", err)
	}
}

func TestSecretsAreSealedAtRest(t *testing.T) {
	namespace(t, "sealed")
	kubectl(t, "", "create", "secret", "generic", "s", "-n", "sealed", "--from-literal=password=hunter22")
	kubectl(t, "", "create", "configmap", "c", "-n", "sealed", "--from-literal=password=hunter22")
	for resource, sealed := range map[string]bool{"secrets/sealed/s": true, "configmaps/sealed/c": false} {
		raw := stored(t, "/registry/"+resource)
		if strings.Contains(raw, "hunter22") == sealed {
			t.Errorf("%s: readable is %v", resource, !sealed)
		}
	}
	wantTexts(t, kubectl(t, "", "get", "secret", "s", "-n", "sealed", "-o", "jsonpath={.data.password}"), "aHVudGVyMjI=")
}

// stored finds a value in the store, whatever its shard.
func stored(t *testing.T, key string) string {
	t.Helper()
	for shard := range uint64(3) {
		if view, ok := shared.Host.Local(shard); ok {
			if kv, found := view.Get(key); found {
				return string(kv.Value)
			}
		}
	}
	t.Fatalf("%s is not stored", key)
	return ""
}

func TestServiceAddresses(t *testing.T) {
	namespace(t, "services")
	services := admin.CoreV1().Services("services")
	service := func(name string, kind corev1.ServiceType, nodePort int32) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{Type: kind, Ports: []corev1.ServicePort{{Port: 80, NodePort: nodePort}}},
		}
	}
	ips, ports := map[string]bool{}, map[int32]bool{}
	for _, name := range []string{"a", "b", "c"} {
		s := must(services.Create(t.Context(), service(name, corev1.ServiceTypeNodePort, 0), metav1.CreateOptions{}))(t)
		ips[s.Spec.ClusterIP], ports[s.Spec.Ports[0].NodePort] = true, true
		if !strings.HasPrefix(s.Spec.ClusterIP, "10.96.") || s.Spec.Ports[0].NodePort < 30000 || s.Spec.Ports[0].NodePort > 32767 {
			t.Errorf("%s got %s and port %d", name, s.Spec.ClusterIP, s.Spec.Ports[0].NodePort)
		}
	}
	if len(ips) != 3 || len(ports) != 3 {
		t.Errorf("not distinct: %v %v", ips, ports)
	}
	taken := int32(30123)
	must(services.Create(t.Context(), service("fixed", corev1.ServiceTypeNodePort, taken), metav1.CreateOptions{}))(t)
	if _, err := services.Create(t.Context(), service("again", corev1.ServiceTypeNodePort, taken), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("port taken twice: %v, want Invalid", err)
	}
	if err := services.Delete(t.Context(), "fixed", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	must(services.Create(t.Context(), service("again", corev1.ServiceTypeNodePort, taken), metav1.CreateOptions{}))(t)
	headless := service("headless", corev1.ServiceTypeClusterIP, 0)
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	must(services.Create(t.Context(), headless, metav1.CreateOptions{}))(t)
}
