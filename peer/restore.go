package peer

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/peer/admin"
	"shoal/peer/backup"
	"shoal/peer/identity"
)

// Restoring says how a cluster is begun anew from a backup.
type Restoring struct {
	// DataDir is the data folder of the new cluster's first peer. It must hold no cluster.
	DataDir string
	// Name is that peer's name; empty means the host's.
	Name string
	// Passphrase opens an encrypted backup.
	Passphrase string
	// Progress takes one line per step; nil is silence.
	Progress func(string)
}

// restoringFile marks a data folder into which a backup is being restored.
const restoringFile = "restoring"

func (c Config) restoringPath() string { return filepath.Join(c.DataDir, restoringFile) }

// Restore begins a cluster anew from a backup, in the data folder of its first peer, which must not run. The cluster keeps its identity:
// its CA, its encryption key and the key of its service accounts come from the backup, so Secrets are readable, and kubeconfigs and
// tokens stay valid. Its peers do not come back: the folder gets a peer of its own, and those of the backup are refused for ever, as
// after `peer leave`. Nodes vanish, and the pods on them; only the one with the new peer's name keeps its object and its pods.
//
// The file is read twice, the first time to prove it whole. If anything is wrong, the folder is left as it was. What is missing then
// for a running cluster is `peer join`.
func Restore(ctx context.Context, file io.ReadSeeker, r Restoring) error {
	cfg, err := Config{DataDir: r.DataDir, Name: r.Name}.WithDefaults()
	if err != nil {
		return err
	}
	if err := cfg.ValidateFlags(); err != nil {
		return err
	}
	progress := r.Progress
	if progress == nil {
		progress = func(string) {}
	}
	progress("checking the backup")
	plan, err := readPlan(file, r.Passphrase, cfg.Name, time.Now())
	if err != nil {
		return err
	}
	if err := cfg.checkDataDir(); err != nil {
		return err
	}
	// As for a running peer: one process per data folder.
	lock, err := admin.Listen(cfg.SocketPath())
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := cfg.prepareRestore(); err != nil {
		return err
	}
	if err := plan.fill(ctx, cfg, file, r.Passphrase, progress); err != nil {
		return fmt.Errorf("%w; the data folder is left without a cluster: run the restore again", errors.Join(err, cfg.abandonRestore()))
	}
	if err := os.Remove(cfg.restoringPath()); err != nil {
		return err
	}
	progress(fmt.Sprintf("restored cluster %s as of %s: %d keys in %d shards", plan.cluster.ID, plan.head.Time.UTC().Format(time.DateTime+" UTC"), plan.totals.Keys, plan.totals.Shards))
	return nil
}

// prepareRestore refuses a folder with a cluster, removes what an interrupted restore has left, and marks the folder.
func (c Config) prepareRestore() error {
	self, err := identity.Load(c.DataDir, time.Now())
	if err == nil {
		return fmt.Errorf("%s belongs to cluster %s: a backup begins a cluster anew, so restore it into an empty data folder (--data-dir); nothing was changed",
			c.DataDir, self.Cluster.ID)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds an identity: a backup is restored into an empty data folder (--data-dir); nothing was changed", c.DataDir)
	}
	_, err = os.Stat(c.restoringPath())
	switch {
	case err == nil:
		if err := c.abandonRestore(); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if entries, err := os.ReadDir(c.StoreDir()); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s holds a store: a backup is restored into an empty data folder (--data-dir); nothing was changed", c.DataDir)
	}
	return os.WriteFile(c.restoringPath(), nil, 0o600)
}

// abandonRestore removes what a restore has made. The identity comes last in a restore: with one, there is nothing to remove.
func (c Config) abandonRestore() error {
	return errors.Join(identity.Forget(c.DataDir), os.RemoveAll(c.StoreDir()), os.Remove(c.restoringPath()))
}

// restorePlan is what the first reading of a file has found.
type restorePlan struct {
	head    backup.Head
	totals  backup.Totals
	cluster *identity.Cluster
	name    string
	now     time.Time
	// peers are those of the backup: peer ID → name. podRange is the pod range of the one with the new peer's name.
	peers    map[string]string
	podRange string
}

// readPlan proves that the file is whole and collects what has to be known before anything of it is written.
func readPlan(file io.ReadSeeker, passphrase, name string, now time.Time) (*restorePlan, error) {
	r, err := rewound(file, passphrase)
	if err != nil {
		return nil, err
	}
	p := &restorePlan{head: r.Head(), cluster: &identity.Cluster{}, name: name, now: now, peers: map[string]string{}}
	if err := json.Unmarshal(r.Secrets(), p.cluster); err != nil {
		return nil, fmt.Errorf("%w: its secrets do not fit together: %w", backup.ErrDamaged, err)
	}
	if ahead := p.head.Time.Sub(now); ahead > store.MaxAhead {
		return nil, fmt.Errorf("the backup is of %s, and this host's clock says %s: set the clock", p.head.Time.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))
	}
	ranges := map[string]string{}
	for {
		shard, kvs, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		for _, kv := range kvs {
			if shard != consensus.MetaShard {
				break
			}
			if id, ok := strings.CutPrefix(kv.Key, peerRecords); ok {
				var record identity.PeerRecord
				if err := json.Unmarshal(kv.Value, &record); err != nil {
					return nil, fmt.Errorf("%w: record %s: %w", backup.ErrDamaged, kv.Key, err)
				}
				p.peers[id] = record.Name
			}
			if address, ok := strings.CutPrefix(kv.Key, rangeRecords); ok {
				ranges[string(kv.Value)] = address
			}
		}
	}
	p.totals = r.Totals()
	for id, name := range p.peers {
		if name == p.name {
			p.podRange = ranges[id]
		}
	}
	return p, nil
}

func rewound(file io.ReadSeeker, passphrase string) (*backup.Reader, error) {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	return backup.NewReader(file, passphrase)
}

// fill makes the peer's keys, its store with everything in it, and last its identity, which is what makes the folder one of a cluster.
func (p *restorePlan) fill(ctx context.Context, cfg Config, file io.ReadSeeker, passphrase string, progress func(string)) error {
	pending, err := identity.Prepare(cfg.DataDir)
	if err != nil {
		return err
	}
	// Former peers that come back must not find their way into the gossip of the new ones.
	if _, err := rand.Read(p.cluster.GossipKey); err != nil {
		return err
	}
	shards := uint64(1)
	for _, shard := range p.head.Shards {
		shards = max(shards, shard)
	}
	host, err := consensus.Open(ctx, consensus.Config{
		PeerID: pending.ID, ClusterID: p.cluster.ID, Dir: cfg.StoreDir(), DataShards: int(shards),
		Listen: func(string) (net.Listener, error) { return newDeafListener(), nil },
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no other peer takes part in a restore")
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	err = p.load(ctx, host, pending.ID, file, passphrase, progress)
	if err := errors.Join(err, host.Shutdown(ctx)); err != nil {
		return err
	}
	_, err = pending.Found(p.now, p.cluster, p.name, nil)
	return err
}

func (p *restorePlan) load(ctx context.Context, host *consensus.Host, self string, file io.ReadSeeker, passphrase string, progress func(string)) error {
	if err := host.Found(ctx); err != nil {
		return err
	}
	r, err := rewound(file, passphrase)
	if err != nil {
		return err
	}
	last := uint64(store.MaxShard + 1)
	for {
		shard, kvs, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if shard != last {
			progress(fmt.Sprintf("restoring shard %d", shard))
			last = shard
		}
		if err := restoreKeys(ctx, host, shard, p.ops(shard, kvs)); err != nil {
			return err
		}
	}
	var ops []store.Op
	for id, name := range p.peers {
		ops = append(ops, store.Op{Key: leftRecords + id, Value: []byte(name)})
	}
	if p.podRange != "" {
		ops = append(ops, store.Op{Key: rangeRecords + p.podRange, Value: []byte(self)})
	}
	return restoreKeys(ctx, host, consensus.MetaShard, ops)
}

// notRestored are records about peers that do not exist any more, and about where replicas were.
var notRestored = []string{
	peerRecords, nameRecords, rangeRecords, leavingPrefix, restartRecords, pressedRecords, "/shoal/shards/", "/shoal/founding/",
}

// ops turns keys of a backup into what is written. Nodes become records of former nodes, but for the one that comes back now: the pods
// on it are taken up again there.
func (p *restorePlan) ops(shard uint64, kvs []store.KV) []store.Op {
	ops := make([]store.Op, 0, len(kvs))
next:
	for _, kv := range kvs {
		if kv.Expires != 0 && kv.Expires <= p.now.UnixMilli() {
			continue
		}
		key := kv.Key
		if shard == consensus.MetaShard {
			for _, prefix := range notRestored {
				if strings.HasPrefix(key, prefix) {
					continue next
				}
			}
			if name, ok := strings.CutPrefix(key, nodePrefix); ok && name != p.name {
				key = formerRecords + name
			}
		}
		ops = append(ops, store.Op{Key: key, Value: kv.Value, Expires: kv.Expires})
	}
	return ops
}

// restoreBytes bounds one transaction of a restore; one object may be larger.
const restoreBytes = 1 << 20

func restoreKeys(ctx context.Context, host *consensus.Host, shard uint64, ops []store.Op) error {
	for len(ops) > 0 {
		n, size := 0, 0
		for n < len(ops) && (n == 0 || size+len(ops[n].Value) < restoreBytes) {
			size += len(ops[n].Value) + len(ops[n].Key)
			n++
		}
		if _, err := host.Propose(ctx, shard, store.Transaction{Ops: ops[:n]}); err != nil {
			return fmt.Errorf("restore shard %d: %w", shard, err)
		}
		ops = ops[n:]
	}
	return nil
}

// deafListener is a service that nobody calls.
type deafListener struct {
	once   sync.Once
	closed chan struct{}
}

func newDeafListener() *deafListener { return &deafListener{closed: make(chan struct{})} }

func (l *deafListener) Accept() (net.Conn, error) {
	<-l.closed
	return nil, net.ErrClosed
}

func (l *deafListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *deafListener) Addr() net.Addr { return &net.UnixAddr{Name: "nowhere", Net: "unix"} }
