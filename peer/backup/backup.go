// Package backup is the file that `peer backup` writes and `peer restore` reads: the
// whole cluster at one revision, as a stream that needs no more memory than its
// largest object.
//
// The file is: magic, then frames. A frame is its kind (1 byte), the length of its
// body (4 bytes, big endian), the body, and the CRC-32C of all three (4 bytes). In
// order they are the head (JSON), the cluster's secrets (JSON), then for each shard its
// number and its keys, and the end (JSON) with counts and the SHA-256 of everything
// before it. A file without its end is cut short; bytes behind it are damage.
//
// With a passphrase, the whole of it is inside an age file (https://age-encryption.org/v1).
package backup

import (
	"encoding/json"
	"errors"
	"hash/crc32"
	"time"

	"shoal/consensus/store"
)

const (
	magic = "SHOALBAK"
	// Format is the format that this version writes, and the newest that it reads.
	Format = 1
	// frameBytes is when a frame of keys is full. One key may need more.
	frameBytes = 1 << 20
	// maxFrame bounds what a reader believes.
	maxFrame = store.MaxValue + store.MaxKey + frameBytes
)

// The kinds of frames.
const (
	kindHead    = 'H'
	kindSecrets = 'S'
	kindShard   = 'N'
	kindKeys    = 'K'
	kindEnd     = 'E'
)

var (
	// ErrDamaged reports a file that is corrupt, cut short or no backup.
	ErrDamaged = errors.New("the backup is damaged")
	// ErrNewer reports a file that a newer version wrote.
	ErrNewer = errors.New("the backup was written by a newer version")
	// ErrPassphrase reports a missing or wrong passphrase.
	ErrPassphrase = errors.New("the backup is encrypted")
)

// Head says what a file holds.
type Head struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"` // cluster ID
	Version string `json:"version"` // of the program that wrote it
	// At is the revision that every shard is saved at, Time the moment it stands for.
	At   store.Revision `json:"at"`
	Time time.Time      `json:"time"`
	// Shards are the shards in the file, in their order.
	Shards []uint64 `json:"shards"`
}

// Totals are what a whole file held.
type Totals struct {
	Shards int    `json:"shards"`
	Keys   int64  `json:"keys"`
	Sum    []byte `json:"sha256"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("a backup's own records always encode: " + err.Error())
	}
	return b
}
