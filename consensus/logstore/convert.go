package logstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/cockroachdb/pebble"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"
)

// oldFolder is where dragonboat's own store is, a pebble.
const oldFolder = "logdb-0"

// The kinds of records in dragonboat's own store. A key is its kind twice, two zero bytes, shard, replica and for entries and snapshots
// an index, all big endian.
const (
	oldEntry     = 0x1
	oldState     = 0x2
	oldMaxIndex  = 0x3
	oldSnapshot  = 0x5
	oldBootstrap = 0x6
	oldBatch     = 0x7
)

func (n node) oldKey(kind byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{kind, kind, 0, 0}, n.shard)
	return binary.BigEndian.AppendUint64(b, n.replica)
}

func (n node) oldIndexed(kind byte, index uint64) []byte {
	return binary.BigEndian.AppendUint64(n.oldKey(kind), index)
}

// convert takes over what dragonboat's own store held, if there is one. It is finished by a rename; an interrupted one is begun anew.
func (f *Factory) convert(cfg config.NodeHostConfig, fs config.IFS, dir, hostDir, walDir string) error {
	from := fs.PathJoin(hostDir, oldFolder)
	if _, err := fs.Stat(from); errors.Is(err, os.ErrNotExist) || fs != vfs.Default {
		return nil
	}
	if _, err := fs.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := f.copyOld(cfg, fs, from, fs.PathJoin(walDir, oldFolder), dir+".new"); err != nil {
			return fmt.Errorf("take %s over: %w", from, err)
		}
		if err := errors.Join(fs.Rename(dir+".new", dir), syncDir(fs, hostDir)); err != nil {
			return fmt.Errorf("take %s over: %w", from, err)
		}
	}
	return errors.Join(fs.RemoveAll(from), syncDir(fs, hostDir))
}

func (f *Factory) copyOld(cfg config.NodeHostConfig, fs config.IFS, from, wal, to string) (err error) {
	if err := fs.RemoveAll(to); err != nil {
		return err
	}
	db, err := pebble.Open(from, &pebble.Options{ReadOnly: true, WALDir: wal, Logger: silent{}})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	s, err := f.open(fs, to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	old := oldStore{db}
	if batched, err := old.any([]byte{oldBatch, oldBatch}, []byte{oldBatch, oldBatch + 1}); err != nil || batched {
		return errors.Join(err, errors.New("it has dragonboat's batched layout, which this version does not read"))
	}
	var nodes []node
	err = old.walk(node{}.oldKey(oldBootstrap), []byte{oldBootstrap, oldBootstrap, 1}, func(key, _ []byte) error {
		if len(key) >= 20 {
			nodes = append(nodes, node{binary.BigEndian.Uint64(key[4:]), binary.BigEndian.Uint64(key[12:])})
		}
		return nil
	})
	for _, n := range nodes {
		if err == nil {
			err = old.copy(n, s)
		}
	}
	return err
}

// silent is pebble's logger while it is only read.
type silent struct{}

func (silent) Infof(string, ...any) {}

func (silent) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

type oldStore struct{ db *pebble.DB }

// get decodes one record; found is false if there is none.
func (o oldStore) get(key []byte, decode func([]byte) error) (found bool, err error) {
	value, closer, err := o.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer closer.Close()
	return true, decode(value)
}

func (o oldStore) walk(low, high []byte, visit func(key, value []byte) error) error {
	iter := o.db.NewIter(&pebble.IterOptions{LowerBound: low, UpperBound: bytes.Clone(high)})
	for ok := iter.First(); ok; ok = iter.Next() {
		if err := visit(iter.Key(), iter.Value()); err != nil {
			return errors.Join(err, iter.Close())
		}
	}
	return iter.Close() // reports what went wrong while reading, too
}

func (o oldStore) any(low, high []byte) (found bool, err error) {
	err = o.walk(low, high, func([]byte, []byte) error { found = true; return nil })
	return found, err
}

// copy takes one replica over. Entries that its newest snapshot stands for are left behind.
func (o oldStore) copy(n node, s *Store) error {
	var info raftpb.Bootstrap
	if _, err := o.get(n.oldKey(oldBootstrap), info.Unmarshal); err != nil {
		return err
	}
	u := raftpb.Update{ShardID: n.shard, ReplicaID: n.replica}
	if _, err := o.get(n.oldKey(oldState), u.State.Unmarshal); err != nil {
		return err
	}
	err := o.walk(n.oldIndexed(oldSnapshot, 0), append(n.oldIndexed(oldSnapshot, math.MaxUint64), 0), func(_, value []byte) error {
		u.Snapshot = raftpb.Snapshot{}
		return u.Snapshot.Unmarshal(value)
	})
	if err != nil {
		return err
	}
	last := uint64(0)
	_, err = o.get(n.oldKey(oldMaxIndex), func(b []byte) error {
		if len(b) < 8 {
			return fmt.Errorf("%s: last entry: %d bytes", n, len(b))
		}
		last = binary.BigEndian.Uint64(b)
		return nil
	})
	if err != nil {
		return err
	}
	next := u.Snapshot.Index + 1
	err = o.walk(n.oldIndexed(oldEntry, next), n.oldIndexed(oldEntry, max(last+1, next)), func(_, value []byte) error {
		var e raftpb.Entry
		if err := e.Unmarshal(bytes.Clone(value)); err != nil {
			return damaged(n, "entry %d: %w", next, err)
		}
		if e.Index != next {
			return damaged(n, "entry %d is missing, entry %d follows", next, e.Index)
		}
		u.EntriesToSave = append(u.EntriesToSave, e)
		next++
		return nil
	})
	if err != nil {
		return err
	}
	if next <= last {
		return damaged(n, "entry %d is missing, entry %d is the last that was written", next, last)
	}
	return errors.Join(s.SaveBootstrapInfo(n.shard, n.replica, info), s.SaveRaftState([]raftpb.Update{u}, 1))
}
