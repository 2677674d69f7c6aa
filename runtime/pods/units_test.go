package pods

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func p[T any](v T) *T { return &v }

func TestEnvironment(t *testing.T) {
	objects := Objects{
		ConfigMap: func(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
			if name != "cm" {
				return nil, apierrors.NewNotFound(corev1.Resource("configmaps"), name)
			}
			return &corev1.ConfigMap{Data: map[string]string{"B": "b", "A": "a"}}, nil
		},
		Services: func(_ context.Context, namespace string) ([]*corev1.Service, error) {
			name, ip := "kubernetes", "10.96.0.1"
			if namespace != "default" {
				name, ip = "my-db", "10.96.0.9"
			}
			return []*corev1.Service{{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}}}}}, nil
		},
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", Labels: map[string]string{"app": "x"}}, Status: corev1.PodStatus{PodIP: "10.0.0.7"}}
	key := func(name, key string, optional bool) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: key, Optional: &optional}}
	}
	c := &corev1.Container{
		Name:    "main",
		EnvFrom: []corev1.EnvFromSource{{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}},
		Env: []corev1.EnvVar{
			{Name: "ONE", Value: "1"}, {Name: "TWO", Value: "$(ONE)$(P_A) $(NONE) $$(ONE) $x"},
			{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
			{Name: "APP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}}},
			{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
			{Name: "KEY", ValueFrom: key("cm", "B", false)}, {Name: "SKIP", ValueFrom: key("none", "x", true)}, {Name: "SKIP2", ValueFrom: key("cm", "x", true)},
			{Name: "DB", Value: "$(MY_DB_SERVICE_HOST)"},
		},
	}
	env, err := environment(t.Context(), objects, pod, c, corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")})
	if err != nil {
		t.Fatal(err)
	}
	got := envMap(env)
	for name, want := range map[string]string{
		"HOSTNAME": "web", "ONE": "1", "TWO": "1a $(NONE) $(ONE) $x", "IP": "10.0.0.7", "APP": "x", "CPU": "2", "KEY": "b", "P_B": "b", "DB": "10.96.0.9",
		"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT_HTTPS": "443", "MY_DB_PORT_443_TCP": "tcp://10.96.0.9:443", "MY_DB_PORT_443_TCP_ADDR": "10.96.0.9",
	} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
	if _, set := got["SKIP"]; set {
		t.Error("an optional variable without a source is set")
	}
	pod.Spec.EnableServiceLinks = p(false)
	c.Env = []corev1.EnvVar{{Name: "X", ValueFrom: key("cm", "none", false)}}
	if _, err := environment(t.Context(), objects, pod, c, nil); err == nil || err.Error() != "couldn't find key none in ConfigMap shop/cm" {
		t.Errorf("a missing key: %v", err)
	}
	c.Env = nil
	env, err = environment(t.Context(), objects, pod, c, nil)
	if err != nil || envMap(env)["MY_DB_SERVICE_HOST"] != "" || envMap(env)["KUBERNETES_SERVICE_HOST"] == "" {
		t.Errorf("without service links: %v %v", env, err)
	}
}

func TestSecurityContexts(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{RunAsUser: p(int64(5)), RunAsNonRoot: p(true), FSGroup: p(int64(9)), SupplementalGroups: []int64{7}}}}
	c := &corev1.Container{Name: "main", SecurityContext: &corev1.SecurityContext{
		RunAsGroup: p(int64(6)), AllowPrivilegeEscalation: p(false), ReadOnlyRootFilesystem: p(true),
		Capabilities:   &corev1.Capabilities{Add: []corev1.Capability{"CAP_NET_ADMIN"}, Drop: []corev1.Capability{"all"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: p("../../etc/x.json")},
	}}
	s, err := security(pod, c, Image{User: "root"}, "/profiles")
	want := Security{User: p(int64(5)), Group: p(int64(6)), SupplementalGroups: []int64{7, 9}, ReadOnlyRoot: true, NoNewPrivileges: true, AddCaps: []string{"NET_ADMIN"}, DropCaps: []string{"ALL"}, Seccomp: "/profiles/etc/x.json"}
	if err != nil || !reflect.DeepEqual(s, want) {
		t.Errorf("%+v %v, want %+v", s, err, want)
	}
	pod.Spec.SecurityContext.RunAsUser = nil
	for user, ok := range map[string]bool{"": false, "0": false, "0:5": false, "app": false, "1000": true, "1000:0": true} {
		if _, err := security(pod, c, Image{User: user}, "/p"); (err == nil) != ok {
			t.Errorf("image user %q: %v", user, err)
		}
	}
	plain, err := security(&corev1.Pod{}, &corev1.Container{}, Image{}, "/p")
	if err != nil || plain.Seccomp != "runtime/default" {
		t.Errorf("%+v %v", plain, err)
	}
	privileged, err := security(&corev1.Pod{}, &corev1.Container{SecurityContext: &corev1.SecurityContext{Privileged: p(true)}}, Image{}, "/p")
	if err != nil || privileged.Seccomp != "unconfined" || !privileged.Privileged {
		t.Errorf("%+v %v", privileged, err)
	}
}

func TestResourceFigures(t *testing.T) {
	list := func(cpu, mem string) corev1.ResourceList {
		out := corev1.ResourceList{}
		if cpu != "" {
			out[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if mem != "" {
			out[corev1.ResourceMemory] = resource.MustParse(mem)
		}
		return out
	}
	node := list("4", "10Gi")
	for _, test := range []struct {
		requests, limits corev1.ResourceList
		qos              corev1.PodQOSClass
		want             Resources
		parent           string
	}{
		{nil, nil, corev1.PodQOSBestEffort, Resources{CPUShares: 2, OOMScoreAdj: 1000}, "besteffort/podu"},
		{list("250m", "1Gi"), nil, corev1.PodQOSBurstable, Resources{CPUShares: 256, OOMScoreAdj: 900}, "burstable/podu"},
		{list("500m", "64Mi"), list("500m", "64Mi"), corev1.PodQOSGuaranteed, Resources{CPUShares: 512, CPUQuota: 50_000, CPUPeriod: 100_000, Memory: 64 << 20, OOMScoreAdj: -997}, "podu"},
		{nil, list("1m", ""), corev1.PodQOSBurstable, Resources{CPUShares: 2, CPUQuota: 1000, CPUPeriod: 100_000, OOMScoreAdj: 999}, "burstable/podu"},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: test.requests, Limits: test.limits}}}}}
		if got := qosClass(pod); got != test.qos {
			t.Errorf("class %s, want %s", got, test.qos)
		}
		if got := containerResources(pod, &pod.Spec.Containers[0], node); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%+v, want %+v", got, test.want)
		}
		if got := cgroupParent(pod); got != test.parent {
			t.Errorf("cgroup %s", got)
		}
	}
}

func TestPodFiles(t *testing.T) {
	dns := DNS{Nameservers: []string{"169.254.20.10"}, Domain: "cluster.local"}
	node := resolver{nameservers: []string{"9.9.9.9"}, searches: []string{"corp"}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"}, Spec: corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst, Subdomain: "sub", HostAliases: []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"a", "b"}}}}}
	if got, want := podResolver(pod, dns, node).text(), "nameserver 169.254.20.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local corp\noptions ndots:5\n"; got != want {
		t.Errorf("resolv.conf %q, want %q", got, want)
	}
	pod.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "169.254.20.10"}, Searches: []string{"corp", "x"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: p("2")}, {Name: "edns0"}}}
	if got, want := podResolver(pod, dns, node).text(), "nameserver 169.254.20.10\nnameserver 1.1.1.1\nsearch shop.svc.cluster.local svc.cluster.local cluster.local corp x\noptions ndots:2 edns0\n"; got != want {
		t.Errorf("resolv.conf %q, want %q", got, want)
	}
	pod.Spec.DNSPolicy = corev1.DNSNone
	if got := podResolver(pod, dns, node); got.nameservers[0] != "1.1.1.1" {
		t.Errorf("dnsPolicy None: %+v", got)
	}
	pod.Spec.DNSPolicy, pod.Spec.DNSConfig, pod.Spec.HostNetwork = corev1.DNSClusterFirst, nil, true
	if got := podResolver(pod, dns, node); got.nameservers[0] != "9.9.9.9" {
		t.Errorf("on the node's network: %+v", got)
	}
	pod.Spec.HostNetwork = false
	hosts := hostsFile(pod, []netip.Addr{netip.MustParseAddr("10.0.0.1")}, "cluster.local", nil)
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "10.0.0.1\tweb.sub.shop.svc.cluster.local\tweb\n", "1.2.3.4\ta\tb\n"} {
		if !strings.Contains(hosts, want) {
			t.Errorf("hosts lacks %q:\n%s", want, hosts)
		}
	}
	pod.Name = strings.Repeat("x", 62) + "-yyy"
	if got := hostname(pod); got != strings.Repeat("x", 62) {
		t.Errorf("hostname %q", got)
	}
}

func TestPullSecrets(t *testing.T) {
	auth := base64.StdEncoding.EncodeToString([]byte("u:p:with:colons"))
	secret := &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths":{
		"https://index.docker.io/v1/":{"auth":"` + auth + `"},"reg.example:5000":{"username":"host","password":"x"},"reg.example:5000/team":{"username":"team","password":"y"},"other":{"username":"no"}}}`)}}
	for ref, want := range map[string][]string{"nginx": {"u"}, "reg.example:5000/team/app:1": {"team", "host"}, "reg.example:5000/teamwork/app": {"host"}, "quay.io/x": nil, "docker.io/library/nginx@sha256:" + strings.Repeat("0", 64): {"u"}} {
		got, err := secretAuth(secret, ref)
		var users []string
		for _, a := range got {
			users = append(users, a.Username)
		}
		if err != nil || !slices.Equal(users, want) {
			t.Errorf("%s: %q %v, want %q", ref, users, err, want)
		}
	}
	if got, err := secretAuth(secret, "nginx"); err != nil || got[0].Password != "p:with:colons" {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := secretAuth(&corev1.Secret{Type: corev1.SecretTypeOpaque}, "nginx"); err == nil {
		t.Error("an opaque secret was taken for credentials")
	}
}

func TestTerminationMessages(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	var text strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&text, "2026-01-02T03:04:05Z stdout F a line of the log with number %d\n", i)
	}
	if err := os.WriteFile(log, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &corev1.Container{TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError}
	cur := &ContainerState{ExitCode: 1, LogPath: log, Labels: map[string]string{labelMessagePath: filepath.Join(dir, "message")}}
	got := terminationMessage(c, cur)
	if !strings.HasSuffix(got, "number 1998\na line of the log with number 1999\n") || len(got) > messageLogMaxBytes || strings.Contains(got, "stdout") {
		t.Errorf("message %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "message"), []byte(strings.Repeat("m", 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := terminationMessage(c, cur); got != strings.Repeat("m", messageMaxBytes) {
		t.Errorf("%d bytes from the file", len(got))
	}
	cur.ExitCode, cur.Labels = 0, nil
	if got := terminationMessage(c, cur); got != "" {
		t.Errorf("a container that succeeded says %q", got)
	}
}

func TestProbeThresholds(t *testing.T) {
	probe := &corev1.Probe{SuccessThreshold: 2, FailureThreshold: 3}
	var c probeCount
	var got []ProbeResult
	for _, ok := range []bool{true, true, false, false, true, false, false, false, true, true} {
		c.observe(ok, probe)
		got = append(got, c.result)
	}
	u, s, f := ProbeUnknown, ProbeSuccess, ProbeFailure
	if want := []ProbeResult{u, s, s, s, s, s, s, f, f, s}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestProbeHandlers(t *testing.T) {
	var seen *http.Request
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r
		switch r.URL.Path {
		case "/bad":
			http.Error(w, "no", http.StatusServiceUnavailable)
		case "/away":
			http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
		case "/slow":
			time.Sleep(1500 * time.Millisecond)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	port := func(s *httptest.Server) int { return s.Listener.Addr().(*net.TCPAddr).Port }
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	checks := health.NewServer()
	checks.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(server, checks)
	go func() { _ = server.Serve(listener) }() // ends with Stop
	defer server.Stop()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := closed.Addr().(*net.TCPAddr).Port
	closed.Close()

	pr := prober{dial: new(net.Dialer).DialContext, exec: func(_ context.Context, _ string, command []string, stdio Stdio) (int, error) {
		fmt.Fprint(stdio.Out, "says "+command[0])
		return map[string]int{"true": 0, "false": 1}[command[0]], nil
	}}
	pod := &corev1.Pod{Status: corev1.PodStatus{PodIP: "127.0.0.1"}}
	c := &corev1.Container{Name: "main", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(port(plain))}}}
	get := func(path string, port intstr.IntOrString, scheme corev1.URIScheme) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: port, Scheme: scheme, HTTPHeaders: []corev1.HTTPHeader{{Name: "Host", Value: "shop"}, {Name: "X-Probe", Value: "1"}}}}
	}
	for _, test := range []struct {
		name    string
		handler corev1.ProbeHandler
		want    string
	}{
		{"http", get("/ok?a=b", intstr.FromString("web"), ""), ""},
		{"http fails", get("bad", intstr.FromInt(port(plain)), "HTTP"), "HTTP probe failed with statuscode: 503: no"},
		{"https", get("/", intstr.FromInt(port(secure)), "HTTPS"), ""},
		{"redirect away", get("/away", intstr.FromString("web"), ""), ""},
		{"slow", get("/slow", intstr.FromString("web"), ""), "deadline exceeded"},
		{"no such port", get("/", intstr.FromString("nope"), ""), `no port named "nope"`},
		{"tcp", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("web")}}, ""},
		{"tcp closed", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(free)}}, "connection refused"},
		{"grpc", corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(listener.Addr().(*net.TCPAddr).Port)}}, ""},
		{"grpc down", corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(listener.Addr().(*net.TCPAddr).Port), Service: p("down")}}, "NOT_SERVING"},
		{"exec", corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}, ""},
		{"exec fails", corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"false"}}}, "says false"},
	} {
		err := pr.probe(t.Context(), pod, "id", c, &corev1.Probe{ProbeHandler: test.handler, TimeoutSeconds: 1})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		if test.name == "http" && (seen.Host != "shop" || seen.Header.Get("X-Probe") != "1" || seen.URL.RawQuery != "a=b" || !strings.HasPrefix(seen.UserAgent(), "kube-probe/")) {
			t.Errorf("request %+v", seen)
		}
	}
}

func TestCheckpoints(t *testing.T) {
	files := paths{root: t.TempDir()}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u", Name: "web"}}
	want := checkpoint{Pod: pod, Record: Record{
		StopFrom: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Backoffs: map[string]Backoff{"c": {Delay: time.Minute}}, End: &End{Reason: "Evicted"}, Status: corev1.PodStatus{Phase: corev1.PodFailed},
	}}
	if err := files.saveCheckpoint(want); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(files.pod("broken"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(files.pod("broken"), checkpointName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := files.loadCheckpoints()
	if err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("error %v", err)
	}
	if len(got) != 1 || !reflect.DeepEqual(got[0].Record, want.Record) || got[0].Pod.Name != "web" {
		t.Errorf("loaded %+v", got)
	}
	if info, err := os.Stat(filepath.Join(files.pod("u"), checkpointName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
}

func TestMergeStatusKeepsWhatIsOthers(t *testing.T) {
	cond := func(kind corev1.PodConditionType, s corev1.ConditionStatus) corev1.PodCondition {
		return corev1.PodCondition{Type: kind, Status: s}
	}
	stored := corev1.PodStatus{Phase: corev1.PodFailed, Conditions: []corev1.PodCondition{cond("gate", "True"), cond(corev1.PodReady, "True"), cond(corev1.DisruptionTarget, "True")}}
	reported := corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{cond("gate", "False"), cond(corev1.PodReady, "False")}}
	got := MergeStatus(stored, reported)
	want := []corev1.PodCondition{cond("gate", "True"), cond(corev1.DisruptionTarget, "True"), cond(corev1.PodReady, "False")}
	if got.Phase != corev1.PodFailed || !reflect.DeepEqual(got.Conditions, want) {
		t.Errorf("%+v", got)
	}
}

func TestRestartRules(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever}}
	c := &corev1.Container{RestartPolicyRules: []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestart, ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}}}}}
	if !shouldRestart(pod, c, 42) || shouldRestart(pod, c, 1) {
		t.Error("the rule for exit code 42 is not followed")
	}
	c.RestartPolicy = p(corev1.ContainerRestartPolicyOnFailure)
	if !shouldRestart(pod, c, 1) || shouldRestart(pod, c, 0) {
		t.Error("the container's own policy is not followed")
	}
}

func TestIdentityOfSandboxes(t *testing.T) {
	owned := func(kind string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{Kind: kind, Controller: p(true)}}}}
	}
	claiming := owned("ReplicaSet")
	claiming.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		want bool
	}{
		"bare": {&corev1.Pod{}, false}, "of a ReplicaSet": {owned("ReplicaSet"), false},
		"of a StatefulSet": {owned("StatefulSet"), true}, "with a claim": {claiming, true},
	} {
		if got := sandboxSpec(c.pod, DNS{}).Identity; got != c.want {
			t.Errorf("a pod %s: identity %t", name, got)
		}
	}
}
