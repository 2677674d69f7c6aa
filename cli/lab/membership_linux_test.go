package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/peer/admin"
)

// kept is the namespace whose objects must survive everything.
const kept = "kept"

// TestMembership proves what becomes of the store when peers are lost, move, and begin anew. The steps share one lab and build on one
// another, so the first failure ends it.
func TestMembership(t *testing.T) {
	c := openCluster(t, 3)
	s := &survival{}
	for _, step := range []struct {
		name string
		test func(t *testing.T, c *cluster)
	}{
		{"settings are shown, changed and checked", settingsChange},
		{"data shards are added", shardsAdded},
		{"a backup holds the cluster at one moment", s.backup},
		{"bad backups change nothing", s.badBackups},
		{"a lost majority says what it lacks", lostMajority},
		{"a copy brings the shards back", recovered},
		{"the lost come back clean", lostComeBack},
		{"all addresses change between two starts", allMove},
		{"a total loss is restored from the backup", s.restored},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, c) }) {
			c.show(t)
			return
		}
	}
}

// awaitStatus waits until a peer's status is as wanted.
func awaitStatus(t testing.TB, peer *Peer, what string, check func(s *admin.Status) error) {
	t.Helper()
	eventually(t, 2*soon, peer.Name+": "+what, func(context.Context) error {
		s, err := status(t, peer)
		if err != nil {
			return err
		}
		return check(s)
	})
}

// settledOn says whether every shard has a leader, so many voters and nothing left to do.
func settledOn(shards, voters int) func(*admin.Status) error {
	return func(s *admin.Status) error {
		if len(s.Shards) != shards || !s.Ready || len(s.Problems) > 0 {
			return fmt.Errorf("%d shards, ready %v, problems %v", len(s.Shards), s.Ready, s.Problems)
		}
		for _, shard := range s.Shards {
			if len(shard.Voters) != voters || shard.Leader == "" || len(shard.Missing)+len(shard.Moves) > 0 {
				return fmt.Errorf("shard %d is %+v", shard.Shard, shard)
			}
		}
		return nil
	}
}

func settingsChange(t *testing.T, c *cluster) {
	out, err := c.Peers[1].Command(t.Context(), "set")
	if err != nil {
		t.Fatal(err)
	}
	wants(t, out, "voters          3", "replace-after   1m0s", "data-shards     8")
	for _, bad := range [][]string{{"voters", "4"}, {"replace-after", "1s"}, {"data-shards", "2"}, {"colour", "blue"}} {
		if out, err := c.Peers[0].Command(t.Context(), append([]string{"set"}, bad...)...); err == nil {
			t.Errorf("set %v is not refused: %s", bad, out)
		}
	}
	if _, err := c.Peers[0].Command(t.Context(), "set", "replace-after", "20s"); err != nil {
		t.Fatal(err)
	}
	awaitStatus(t, c.Peers[2], "knows the setting", func(s *admin.Status) error {
		if s.Settings["replace-after"] != "20s" {
			return fmt.Errorf("it has %v", s.Settings)
		}
		return nil
	})
}

func shardsAdded(t *testing.T, c *cluster) {
	if _, err := c.Peers[1].Command(t.Context(), "set", "data-shards", "10"); err != nil {
		t.Fatal(err)
	}
	for _, peer := range c.Peers {
		awaitStatus(t, peer, "has eleven shards with three voters", settledOn(11, 3))
	}
	// The emptiest shards are the new ones: namespaces come to them, and everybody sees what is in them.
	n := 0
	eventually(t, soon, "a namespace is in a new shard", func(context.Context) error {
		n++
		name := fmt.Sprintf("added-%d", n)
		c.kubectl(t, "create", "namespace", name)
		c.kubectl(t, "create", "configmap", "seen", "-n", name)
		s, err := status(t, c.Peers[0])
		if err != nil {
			return err
		}
		for _, shard := range s.Shards {
			if shard.Shard > 8 && shard.Namespaces > 0 {
				return nil
			}
		}
		return errors.New("all are elsewhere")
	})
	wants(t, c.kubectl(t, "get", "configmaps", "-A", "--field-selector", "metadata.name=seen", "-o", "name"), strings.Repeat("configmap/seen\n", n))
}

// survival is what is remembered between the steps.
type survival struct {
	file, locked, passphrase string
	objects                  map[string]string // by kind and name: UID and content
	serviceIP                string
}

// objects reads what must not change: everything but what says where and how pods run.
func (c *cluster) objects(t testing.TB) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, list := range []string{"configmaps", "secrets", "services", "deployments", "statefulsets", "serviceaccounts", "roles"} {
		var items struct {
			Items []struct {
				Kind     string            `json:"kind"`
				Metadata metav1.ObjectMeta `json:"metadata"`
				Spec     json.RawMessage   `json:"spec"`
				Data     json.RawMessage   `json:"data"`
			} `json:"items"`
		}
		if err := json.Unmarshal([]byte(c.kubectl(t, "get", list, "-n", kept, "-o", "json")), &items); err != nil {
			t.Fatal(err)
		}
		for _, item := range items.Items {
			found[item.Kind+" "+item.Metadata.Name] = fmt.Sprintf("%s %s %s", item.Metadata.UID, item.Spec, item.Data)
		}
	}
	return found
}

func (s *survival) backup(t *testing.T, c *cluster) {
	c.kubectl(t, "create", "namespace", kept)
	c.kubectl(t, "create", "secret", "generic", "hidden", "-n", kept, "--from-literal=password=swordfish")
	c.kubectl(t, "create", "configmap", "plain", "-n", kept, "--from-literal=key=value")
	c.kubectl(t, "label", "node", "peer-1", "peer-2", "peer-3", "example.com/disk=fast")
	c.apply(t, kept, web("web", 2, "hello"))
	c.kubectl(t, "expose", "deployment", "web", "-n", kept, "--port=80", "--target-port=8080")
	c.readyPods(t, soon, kept, "app=web", 2)
	s.objects = c.objects(t)
	s.serviceIP = c.kubectl(t, "get", "service", "web", "-n", kept, "-o", "jsonpath={.spec.clusterIP}")
	s.file, s.locked = filepath.Join(c.Dir, "backup"), filepath.Join(c.Dir, "backup.locked")
	s.passphrase = filepath.Join(c.Dir, "passphrase")
	if err := os.WriteFile(s.passphrase, []byte("open sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	writing := c.keepAsking(t, "writing", func(ctx context.Context) error {
		_, err := c.client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "busy-"}}, metav1.CreateOptions{})
		return err
	})
	for _, args := range [][]string{{s.file}, {s.locked, "--passphrase-file", s.passphrase}} {
		out, err := c.Peers[2].Command(t.Context(), append([]string{"backup"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		wants(t, out, "keys in 11 shards")
		if info, err := os.Stat(args[0]); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", args[0], info, err)
		}
	}
	writing.end(t, "writes during the backup")
	if _, err := c.Peers[2].Command(t.Context(), "backup", s.file); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("an existing file: %v", err)
	}
}

func (s *survival) badBackups(t *testing.T, c *cluster) {
	whole, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	folder := filepath.Join(c.Dir, "fresh")
	for name, test := range map[string]struct {
		content []byte
		args    []string
		want    string
	}{
		"flipped":    {flipped, nil, "damaged"},
		"cut":        {whole[:len(whole)*2/3], nil, "cut short"},
		"no backup":  {[]byte("something else altogether"), nil, "no backup"},
		"a locked":   {nil, []string{s.locked}, "passphrase"},
		"not empty":  {whole, []string{"--data-dir", c.Peers[0].Dir}, "already"},
		"no name":    {whole, []string{"--name", "not_a_name"}, "name"},
		"of nothing": {nil, []string{filepath.Join(c.Dir, "nowhere")}, "no such file"},
	} {
		args := []string{"restore", "--data-dir", folder, "--name", "peer-1"}
		if test.content != nil {
			bad := filepath.Join(c.Dir, "bad")
			if err := os.WriteFile(bad, test.content, 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, bad)
		}
		out, err := c.Peers[0].Command(t.Context(), append(args, test.args...)...)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("a restore of %s: %v\n%s", name, err, out)
		}
		if entries, err := os.ReadDir(folder); err == nil && len(entries) > 0 {
			for _, entry := range entries {
				if !strings.HasPrefix(entry.Name(), "peer.sock") && entry.Name() != "reserve" {
					t.Errorf("a restore of %s left %s", name, entry.Name())
				}
			}
		}
	}
}

func lostMajority(t *testing.T, c *cluster) {
	for _, peer := range c.Peers[1:] {
		if err := c.Cut(peer); err != nil {
			t.Fatal(err)
		}
	}
	survivor := c.Peers[0]
	awaitStatus(t, survivor, "says what is lost", func(s *admin.Status) error {
		for _, shard := range s.Shards {
			if !shard.Lost || len(shard.Missing) != 2 {
				return fmt.Errorf("shard %d is %+v", shard.Shard, shard)
			}
		}
		return nil
	})
	var err error
	if c.client, err = c.clientFor(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "reads at revision 0 answer", func(ctx context.Context) error {
		list, err := c.client.CoreV1().ConfigMaps(kept).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err == nil && !slices.ContainsFunc(list.Items, func(m corev1.ConfigMap) bool { return m.Name == "plain" }) {
			err = fmt.Errorf("it shows %d", len(list.Items))
		}
		return err
	})
	eventually(t, soon, "a write says why it cannot be", func(ctx context.Context) error {
		_, err := c.try(ctx, "", tools.kubectl, "create", "configmap", "not-written", "-n", kept)
		if err == nil {
			t.Fatal("a write without a majority was confirmed")
		}
		for _, want := range []string{"shard", "no quorum", "peer-2", "peer-3"} {
			if !strings.Contains(err.Error(), want) {
				return fmt.Errorf("it does not say %q: %w", want, err)
			}
		}
		return nil
	})
}

func recovered(t *testing.T, c *cluster) {
	survivor := c.Peers[0]
	out, err := survivor.Command(t.Context(), "recover")
	if err != nil {
		t.Fatal(err)
	}
	wants(t, out, "shard 0 has no quorum: 2 of its 3 voters are missing: peer-2, peer-3", "copy on peer-1: last change",
		"last had a leader", "Lost is what peer-2 and peer-3 confirmed", "Nothing was changed", "peer recover --yes 0 1 2")
	process := survivor.Pid()
	if _, err := survivor.Command(t.Context(), "recover", "--yes"); err != nil {
		t.Fatal(err)
	}
	awaitStatus(t, survivor, "leads every shard", settledOn(11, 1))
	if now := survivor.Pid(); now != process {
		t.Errorf("the process was %d and is %d", process, now)
	}
	eventually(t, soon, "writes are taken", func(ctx context.Context) error {
		_, err := c.client.CoreV1().ConfigMaps(kept).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "after"}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
		return err
	})
	secret, err := c.client.CoreV1().Secrets(kept).Get(t.Context(), "hidden", metav1.GetOptions{})
	if err != nil || string(secret.Data["password"]) != "swordfish" {
		t.Errorf("the secret is %v, %v", secret, err)
	}
	c.readyPods(t, 2*soon, kept, "app=web", 2)
}

// lostComeBack: together the two are a majority of what was, and must not go on as that.
func lostComeBack(t *testing.T, c *cluster) {
	for _, peer := range c.Peers[1:] {
		if err := errors.Join(c.Mend(peer), peer.Start()); err != nil {
			t.Fatal(err)
		}
	}
	for _, peer := range c.Peers {
		awaitStatus(t, peer, "has three voters everywhere", settledOn(11, 3))
	}
	for i := range c.Peers {
		client, err := c.clientFor(i)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.CoreV1().ConfigMaps(kept).Get(t.Context(), "after", metav1.GetOptions{}); err != nil {
			t.Errorf("%s does not know what was written meanwhile: %v", c.Peers[i].Name, err)
		}
	}
}

// allMove: nobody knows anybody's new address. Two hints join three.
func allMove(t *testing.T, c *cluster) {
	for i, peer := range c.Peers {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		if err := errors.Join(peer.Stop(ctx), c.Move(peer, i)); err != nil {
			t.Fatal(err)
		}
	}
	// One is told at its start, one while it runs, one nothing at all.
	if err := errors.Join(c.Peers[0].Start(), c.Peers[1].Start(c.Peers[0].Address), c.Peers[2].Start()); err != nil {
		t.Fatal(err)
	}
	// On a host without a running peer the same command would start one.
	eventually(t, soon, "the peer runs", func(context.Context) error {
		_, err := status(t, c.Peers[0])
		return err
	})
	if out, err := c.Peers[0].Command(t.Context(), "join", c.Peers[2].Address); err != nil {
		t.Fatalf("a running peer takes no hint: %v: %s", err, out)
	}
	for _, peer := range c.Peers {
		awaitStatus(t, peer, "is in the cluster again", settledOn(11, 3))
	}
	c.readyPods(t, 2*soon, kept, "app=web", 2)
}

// restored: everything is lost but the backup. Two of the three hosts come back, with empty disks and one under its old name.
func (s *survival) restored(t *testing.T, c *cluster) {
	for _, peer := range c.Peers {
		if err := c.Cut(peer); err != nil {
			t.Fatal(err)
		}
	}
	first, second := c.Peers[0], c.Peers[1]
	for _, peer := range []*Peer{first, second} {
		if err := errors.Join(peer.wipe(), c.Mend(peer)); err != nil {
			t.Fatal(err)
		}
	}
	second.Name = "newcomer"
	out, err := first.Command(t.Context(), "restore", "--name", first.Name, "--passphrase-file", s.passphrase, s.locked)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, out, "restoring shard 0", "in 11 shards", "restored cluster", "peer join")
	if _, err := first.Command(t.Context(), "restore", "--name", first.Name, s.file); err == nil || !strings.Contains(err.Error(), "belongs to cluster") {
		t.Errorf("a second restore: %v", err)
	}
	if err := c.startPeer(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	token, err := first.Command(t.Context(), "token", "create", "--quiet")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.startPeer(t.Context(), second, first.Address, "--token", strings.TrimSpace(token)); err != nil {
		t.Fatal(err)
	}
	for _, peer := range []*Peer{first, second} {
		if _, err := peer.Command(t.Context(), "image", "import", tools.image); err != nil {
			t.Fatal(err)
		}
	}
	// The old kubeconfig is still good: the CA is the cluster's.
	if c.client, err = c.clientFor(0); err != nil {
		t.Fatal(err)
	}
	after := c.objects(t)
	for name, want := range s.objects {
		if after[name] != want {
			t.Errorf("%s was\n%s\nand is\n%s", name, want, after[name])
		}
	}
	if len(after) != len(s.objects) {
		t.Errorf("there were %d objects and are %d", len(s.objects), len(after))
	}
	eventually(t, soon, "the nodes are those that exist", func(context.Context) error {
		nodes := strings.Fields(c.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
		if slices.Sort(nodes); !slices.Equal(nodes, []string{"newcomer", "peer-1"}) {
			return fmt.Errorf("they are %v", nodes)
		}
		return nil
	})
	wants(t, c.kubectl(t, "get", "node", "peer-1", "-o", "jsonpath={.metadata.labels}"), `"example.com/disk":"fast"`)
	c.readyPods(t, 2*soon, kept, "app=web", 2)
	if ip := c.kubectl(t, "get", "service", "web", "-n", kept, "-o", "jsonpath={.spec.clusterIP}"); ip != s.serviceIP {
		t.Errorf("the Service had %s and has %s", s.serviceIP, ip)
	}
	eventually(t, soon, "the Service answers", func(ctx context.Context) error {
		status, err := second.get(ctx, "http://"+s.serviceIP+"/")
		if err == nil && status != 200 {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	awaitStatus(t, first, "has no problem", func(s *admin.Status) error {
		if len(s.Problems) > 0 || len(s.Peers) != 2 {
			return fmt.Errorf("it sees %+v", s)
		}
		return nil
	})
}
