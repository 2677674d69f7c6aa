package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"

	"shoal/runtime/pods"
)

// world holds the objects that volumes are made from.
type world struct {
	configMaps map[string]*corev1.ConfigMap
	secrets    map[string]*corev1.Secret
	claims     map[string]*corev1.PersistentVolumeClaim
	volumes    map[string]*corev1.PersistentVolume
	tokens     int
	tokenLife  time.Duration
	tokenErr   error
	lastToken  authenticationv1.TokenRequestSpec
}

func lookup[T any](m map[string]*T, kind, name string) (*T, error) {
	if v, have := m[name]; have {
		return v, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource(kind), name)
}

func (w *world) objects() pods.Objects {
	return pods.Objects{
		ConfigMap: func(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
			return lookup(w.configMaps, "configmaps", name)
		},
		Secret: func(_ context.Context, _, name string) (*corev1.Secret, error) {
			return lookup(w.secrets, "secrets", name)
		},
		PersistentVolumeClaim: func(_ context.Context, _, name string) (*corev1.PersistentVolumeClaim, error) {
			return lookup(w.claims, "persistentvolumeclaims", name)
		},
		PersistentVolume: func(_ context.Context, name string) (*corev1.PersistentVolume, error) {
			return lookup(w.volumes, "persistentvolumes", name)
		},
		Token: func(_ context.Context, namespace, account string, spec authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequestStatus, error) {
			if w.tokenErr != nil {
				return nil, w.tokenErr
			}
			w.tokens++
			w.lastToken = spec
			return &authenticationv1.TokenRequestStatus{Token: fmt.Sprintf("%s/%s#%d", namespace, account, w.tokens), ExpirationTimestamp: metav1.NewTime(time.Now().Add(w.tokenLife))}, nil
		},
	}
}

func newManager(t *testing.T, w *world) *Manager {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volumes")
	m, err := New(Config{Dir: dir, Objects: w.objects()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveAll(dir); err != nil {
			t.Errorf("remove all: %v", err)
		}
		if left, err := mountsBelow(dir); err != nil || len(left) > 0 {
			t.Errorf("still mounted: %v %v", left, err)
		}
	})
	return m
}

func newPod(name string, volumes ...corev1.Volume) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: "0000-" + "1", Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Volumes: volumes, ServiceAccountName: "robot", Containers: []corev1.Container{{Name: "main"}}},
	}
	for _, v := range volumes {
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: v.Name, MountPath: "/" + v.Name})
	}
	return pod
}

func volume(name string, s corev1.VolumeSource) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: s}
}

// prepared prepares the pod and returns what its container sees, by volume name.
func prepared(t *testing.T, m *Manager, pod *corev1.Pod) map[string]pods.Mount {
	t.Helper()
	if _, err := m.Prepare(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	mounts, _, err := m.Mounts(t.Context(), pod, &pod.Spec.Containers[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]pods.Mount{}
	for i, mount := range mounts {
		out[pod.Spec.Containers[0].VolumeMounts[i].Name] = mount
	}
	return out
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func stat(t *testing.T, path string) (fs.FileMode, *syscall.Stat_t) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode(), info.Sys().(*syscall.Stat_t)
}

func ptr[T any](v T) *T { return &v }

func TestEmptyDirs(t *testing.T) {
	m := newManager(t, &world{})
	pod := newPod("p",
		volume("disk", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: ptr(resource.MustParse("1Mi"))}}),
		volume("mem", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("1Mi"))}}),
	)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(4321))}
	mounts := prepared(t, m, pod)
	for _, name := range []string{"disk", "mem"} {
		mode, st := stat(t, mounts[name].HostPath)
		if mode.Perm() != 0o777 || mode&fs.ModeSetgid == 0 || st.Gid != 4321 {
			t.Errorf("%s: mode %v gid %d", name, mode, st.Gid)
		}
	}
	err := os.WriteFile(filepath.Join(mounts["mem"].HostPath, "big"), make([]byte, 2<<20), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a memory volume takes more than its limit: %v", err)
	}
	if err := os.WriteFile(filepath.Join(mounts["disk"].HostPath, "big"), make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = m.Prepare(t.Context(), pod)
	var evict *pods.EvictError
	if !errors.As(err, &evict) || !strings.Contains(evict.Message, `"disk" exceeds the limit "1Mi"`) {
		t.Errorf("above its limit: %v", err)
	}
	if u := m.Usage(pod)["disk"]; u.UsedBytes < 2<<20 {
		t.Errorf("usage %+v", u)
	}
	if err := m.Cleanup(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if left, err := m.Existing(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("after cleanup: %v %v", left, err)
	}
	if err := m.Cleanup(t.Context(), pod.UID); err != nil {
		t.Errorf("a second cleanup: %v", err)
	}
}

func TestCleanupNeverDeletesBehindAMount(t *testing.T) {
	m := newManager(t, &world{})
	precious := t.TempDir()
	if err := os.WriteFile(filepath.Join(precious, "data"), []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := newPod("p", volume("disk", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}), volume("host", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: precious}}))
	pod.Spec.Containers[0].VolumeMounts[1].SubPath = "made/inside"
	mounts := prepared(t, m, pod)
	foreign := filepath.Join(mounts["disk"].HostPath, "foreign")
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(precious, foreign, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := m.Cleanup(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if got := read(t, precious, "data"); got != "keep" {
		t.Error("data behind a mount was touched")
	}
	if _, err := os.Stat(filepath.Join(precious, "made/inside")); err != nil {
		t.Errorf("the subPath on the host: %v", err)
	}
	if err := m.Cleanup(t.Context(), "../x"); err == nil {
		t.Error("a UID that is a path was accepted")
	}
}

func TestConfigMapUpdatesAtOnce(t *testing.T) {
	w := &world{configMaps: map[string]*corev1.ConfigMap{"conf": {Data: map[string]string{"a": "1", "b": "1"}, BinaryData: map[string][]byte{"bin": {0, 1}}}}}
	m := newManager(t, w)
	pod := newPod("p", volume("conf", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}))
	dir := prepared(t, m, pod)["conf"].HostPath
	if !prepared(t, m, pod)["conf"].ReadOnly {
		t.Error("a ConfigMap can be written")
	}
	link, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil || read(t, dir, "a") != "1" || read(t, dir, "bin") != "\x00\x01" {
		t.Fatal(err)
	}
	prepared(t, m, pod)
	if again, _ := os.Readlink(filepath.Join(dir, "..data")); again != link {
		t.Error("unchanged content was written again")
	}
	open, err := os.Open(filepath.Join(dir, "..data")) // a reader in the middle
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	w.configMaps["conf"] = &corev1.ConfigMap{Data: map[string]string{"a": "2", "c": "2"}}
	prepared(t, m, pod)
	if read(t, dir, "a") != "2" || read(t, dir, "c") != "2" {
		t.Error("not updated")
	}
	if _, err := os.Stat(filepath.Join(dir, "b")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key that went is still there: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 { // a, c, ..data and one version
		t.Errorf("entries %v %v", entries, err)
	}
}

func TestSourcesItemsAndModes(t *testing.T) {
	w := &world{
		configMaps: map[string]*corev1.ConfigMap{"conf": {Data: map[string]string{"k": "v"}}},
		secrets:    map[string]*corev1.Secret{"cred": {Data: map[string][]byte{"user": []byte("u"), "pass": []byte("p")}}},
		tokenLife:  time.Hour,
	}
	m := newManager(t, w)
	ref := func(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }
	pod := newPod("p",
		volume("secret", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "cred", DefaultMode: ptr(int32(0o400)), Items: []corev1.KeyToPath{{Key: "pass", Path: "deep/er/pass"}}}}),
		volume("info", corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
			{Path: "mem", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "main", Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}},
		}}}),
		volume("all", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: ref("conf")}},
			{Secret: &corev1.SecretProjection{LocalObjectReference: ref("absent"), Optional: ptr(true)}},
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "vault", ExpirationSeconds: ptr(int64(600))}},
		}}}),
	)
	pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(77))}
	mounts := prepared(t, m, pod)
	if read(t, mounts["secret"].HostPath, "deep/er/pass") != "p" || read(t, mounts["info"].HostPath, "labels") != `app="web"` || read(t, mounts["info"].HostPath, "mem") != "64" {
		t.Error("content is wrong")
	}
	if _, err := os.Stat(filepath.Join(mounts["secret"].HostPath, "user")); err == nil {
		t.Error("a key that items do not name is there")
	}
	if mode, st := stat(t, filepath.Join(mounts["secret"].HostPath, "deep/er/pass")); mode.Perm() != 0o440 || st.Gid != 77 {
		t.Errorf("secret file: %v gid %d", mode, st.Gid)
	}
	if mode, st := stat(t, filepath.Join(mounts["all"].HostPath, "token")); mode.Perm() != 0o640 || st.Gid != 77 {
		t.Errorf("token file: %v gid %d", mode, st.Gid)
	}
	if read(t, mounts["all"].HostPath, "token") != "default/robot#1" || w.lastToken.Audiences[0] != "vault" || *w.lastToken.ExpirationSeconds != 600 ||
		w.lastToken.BoundObjectRef.UID != pod.UID || w.lastToken.BoundObjectRef.Kind != "Pod" {
		t.Errorf("token request %+v", w.lastToken)
	}
	var fsinfo unix.Statfs_t
	if err := unix.Statfs(mounts["secret"].HostPath, &fsinfo); err != nil || fsinfo.Type != unix.TMPFS_MAGIC {
		t.Errorf("secrets lie on file system %x: %v", fsinfo.Type, err)
	}
}

func TestTokenIsRenewedBeforeItExpires(t *testing.T) {
	w := &world{tokenLife: time.Second}
	m := newManager(t, w)
	pod := newPod("p", volume("tok", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}))
	begun := time.Now()
	again, err := m.Prepare(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if wait := again.Sub(begun); wait < 700*time.Millisecond || wait > 900*time.Millisecond {
		t.Errorf("wants to be called in %s, not at 80%% of a second", wait)
	}
	prepared(t, m, pod)
	if w.tokens != 1 {
		t.Errorf("%d tokens", w.tokens)
	}
	time.Sleep(time.Until(again))
	w.tokenErr = errors.New("no quorum")
	dir := prepared(t, m, pod)["tok"].HostPath // the old one is still good
	if read(t, dir, "token") != "default/robot#1" {
		t.Error("token changed")
	}
	w.tokenErr = nil
	m.tokens = map[tokenKey]token{} // as after a restart
	prepared(t, m, pod)
	if read(t, dir, "token") != "default/robot#2" {
		t.Errorf("token %q", read(t, dir, "token"))
	}
}

func TestMissingSourcesAreNamed(t *testing.T) {
	m := newManager(t, &world{secrets: map[string]*corev1.Secret{"cred": {}}})
	for _, test := range []struct {
		source corev1.VolumeSource
		want   string
	}{
		{corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "x"}}}, `MountVolume.SetUp failed for volume "v" : configmaps "x" not found`},
		{corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "cred", Items: []corev1.KeyToPath{{Key: "k", Path: "p"}}}}, "references non-existent secret key: k"},
		{corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "y"}}, `secrets "y" not found`},
		{corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}, "not supported"},
		{corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}, `persistentvolumeclaims "c" not found`},
	} {
		if _, err := m.Prepare(t.Context(), newPod("p", volume("v", test.source))); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %q", err, test.want)
		}
	}
}

func TestContentStaysInside(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"../x", "/etc/x", "..data", "a/../../x", "", "."} {
		if _, err := writeContent(dir, map[string]file{name: {}}, func(string) error { return nil }); err == nil {
			t.Errorf("%q was written", name)
		}
	}
}

func TestInterruptedWriteIsCleanedUp(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, dataPrefix+"dead"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, dataLinkNew)); err != nil {
		t.Fatal(err)
	}
	if _, err := writeContent(dir, map[string]file{"a": {data: []byte("1"), mode: 0o644, uid: -1}}, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 || read(t, dir, "a") != "1" {
		t.Errorf("%v %v", entries, err)
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	plain, sock := filepath.Join(dir, "file"), filepath.Join(dir, "sock")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, test := range []struct {
		path string
		kind corev1.HostPathType
		ok   bool
	}{
		{dir, corev1.HostPathUnset, true}, {filepath.Join(dir, "made"), corev1.HostPathUnset, true},
		{dir, corev1.HostPathDirectory, true}, {plain, corev1.HostPathDirectory, false}, {filepath.Join(dir, "no"), corev1.HostPathDirectory, false},
		{filepath.Join(dir, "new/dir"), corev1.HostPathDirectoryOrCreate, true}, {plain, corev1.HostPathDirectoryOrCreate, false},
		{plain, corev1.HostPathFile, true}, {dir, corev1.HostPathFile, false}, {filepath.Join(dir, "newfile"), corev1.HostPathFileOrCreate, true},
		{sock, corev1.HostPathSocket, true}, {plain, corev1.HostPathSocket, false},
		{"/dev/null", corev1.HostPathCharDev, true}, {plain, corev1.HostPathCharDev, false}, {"/dev/null", corev1.HostPathBlockDev, false},
	} {
		if err := checkHostPath(&corev1.HostPathVolumeSource{Path: test.path, Type: &test.kind}); (err == nil) != test.ok {
			t.Errorf("%s as %q: %v", test.path, test.kind, err)
		}
	}
}

func TestSubPaths(t *testing.T) {
	w := &world{configMaps: map[string]*corev1.ConfigMap{"conf": {Data: map[string]string{"key": "text"}}}}
	m := newManager(t, w)
	pod := newPod("p",
		volume("disk", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
		volume("conf", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}))
	c := &pod.Spec.Containers[0]
	c.VolumeMounts[0].SubPathExpr = "$(POD)/logs"
	c.VolumeMounts[1].SubPath = "key"
	if _, err := m.Prepare(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Mounts(t.Context(), pod, c, nil); err == nil {
		t.Error("an unknown variable was accepted")
	}
	env := []pods.EnvVar{{Name: "POD", Value: "web-1"}}
	for range 2 { // a restarted container mounts again
		mounts, _, err := m.Mounts(t.Context(), pod, c, env)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(mounts[0].HostPath, "x"), []byte("here"), 0o600); err != nil {
			t.Fatal(err)
		}
		if read(t, m.diskDir(pod.UID, "disk"), "web-1/logs/x") != "here" || read(t, mounts[1].HostPath) != "text" {
			t.Error("subPath leads elsewhere")
		}
	}
	// A link that a container made does not lead out.
	if err := os.Symlink("/etc", filepath.Join(m.diskDir(pod.UID, "disk"), "out")); err != nil {
		t.Fatal(err)
	}
	c.VolumeMounts = []corev1.VolumeMount{{Name: "disk", MountPath: "/x", SubPath: "out/passwd"}}
	mounts, _, err := m.Mounts(t.Context(), pod, c, env)
	if err == nil {
		if data, err := os.ReadFile(mounts[0].HostPath); err == nil && strings.Contains(string(data), "root:") {
			t.Error("a link led out of the volume")
		}
	}
	for _, bad := range []string{"../x", "/x", "a/../../b"} {
		c.VolumeMounts = []corev1.VolumeMount{{Name: "disk", MountPath: "/x", SubPath: bad}}
		if _, _, err := m.Mounts(t.Context(), pod, c, env); err == nil {
			t.Errorf("subPath %q was accepted", bad)
		}
	}
}

func TestPersistentVolumes(t *testing.T) {
	dir := t.TempDir()
	w := &world{
		claims:  map[string]*corev1.PersistentVolumeClaim{},
		volumes: map[string]*corev1.PersistentVolume{},
	}
	bind := func(name string, pv corev1.PersistentVolumeSource, phase corev1.PersistentVolumeClaimPhase) {
		w.claims[name] = &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "c-1"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: name}, Status: corev1.PersistentVolumeClaimStatus{Phase: phase}}
		w.volumes[name] = &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: pv, ClaimRef: &corev1.ObjectReference{UID: "c-1"}}}
	}
	bind("local", corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir}}, corev1.ClaimBound)
	bind("host", corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: filepath.Join(dir, "h"), Type: ptr(corev1.HostPathDirectoryOrCreate)}}, corev1.ClaimBound)
	bind("pending", corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir}}, corev1.ClaimPending)
	bind("gone", corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir + "/no"}}, corev1.ClaimBound)
	bind("nfs", corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{}}, corev1.ClaimBound)
	m := newManager(t, w)
	pvc := func(name string) *corev1.Pod {
		return newPod("p", volume("v", corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}))
	}
	if got := prepared(t, m, pvc("local"))["v"].HostPath; got != dir {
		t.Errorf("local at %s", got)
	}
	if got := prepared(t, m, pvc("host"))["v"].HostPath; got != filepath.Join(dir, "h") {
		t.Errorf("hostPath at %s", got)
	}
	for _, name := range []string{"pending", "gone", "nfs"} {
		if _, err := m.Prepare(t.Context(), pvc(name)); err == nil {
			t.Errorf("%s was prepared", name)
		}
	}
	if err := m.Cleanup(t.Context(), "0000-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("the volume's data is gone: %v", err)
	}
}

func TestSuccessorFindsVolumes(t *testing.T) {
	w := &world{}
	m := newManager(t, w)
	pod := newPod("p", volume("mem", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}))
	path := prepared(t, m, pod)["mem"].HostPath
	if err := os.WriteFile(filepath.Join(path, "x"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	next, err := New(Config{Dir: m.cfg.Dir, Objects: w.objects()})
	if err != nil {
		t.Fatal(err)
	}
	if read(t, prepared(t, next, pod)["mem"].HostPath, "x") != "kept" {
		t.Error("content was lost")
	}
	if found, err := next.Existing(t.Context()); err != nil || len(found) != 1 || found[0] != pod.UID {
		t.Errorf("existing %v %v", found, err)
	}
}
