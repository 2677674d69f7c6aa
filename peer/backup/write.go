package backup

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"filippo.io/age"

	"shoal/consensus/store"
)

// Writer writes a backup. Every method's error is that of the stream below it.
type Writer struct {
	w    *bufio.Writer
	sum  hash.Hash
	done func() error // ends the encryption
	buf  []byte
	// totals grow with what is written.
	totals Totals
}

// NewWriter begins a backup. secrets is the cluster's JSON. A passphrase of "" leaves the file in
// the clear.
func NewWriter(w io.Writer, passphrase string, head Head, secrets []byte) (*Writer, error) {
	bw := &Writer{sum: sha256.New(), done: func() error { return nil }}
	if passphrase != "" {
		recipient, err := age.NewScryptRecipient(passphrase)
		if err != nil {
			return nil, fmt.Errorf("encrypt the backup: %w", err)
		}
		sealed, err := age.Encrypt(w, recipient)
		if err != nil {
			return nil, fmt.Errorf("encrypt the backup: %w", err)
		}
		w, bw.done = sealed, sealed.Close
	}
	bw.w = bufio.NewWriterSize(w, 64<<10)
	head.Format = Format
	return bw, errors.Join(bw.raw([]byte(magic)), bw.frame(kindHead, mustJSON(head)), bw.frame(kindSecrets, secrets))
}

// Shard begins a shard's keys.
func (w *Writer) Shard(shard uint64) error {
	w.totals.Shards++
	return w.frame(kindShard, binary.AppendUvarint(nil, shard))
}

// Keys adds keys to the shard that was begun last.
func (w *Writer) Keys(kvs []store.KV) error {
	for len(kvs) > 0 {
		n, size := 0, 0
		for n < len(kvs) && (n == 0 || size < frameBytes) {
			size += len(kvs[n].Key) + len(kvs[n].Value) + 32
			n++
		}
		w.buf = store.AppendKVs(w.buf[:0], kvs[:n])
		if err := w.frame(kindKeys, w.buf); err != nil {
			return err
		}
		w.totals.Keys += int64(n)
		kvs = kvs[n:]
	}
	return nil
}

// Close writes the end, without which the file is worth nothing, and returns what was written.
func (w *Writer) Close() (Totals, error) {
	w.totals.Sum = w.sum.Sum(nil)
	err := w.frame(kindEnd, mustJSON(w.totals))
	return w.totals, errors.Join(err, w.w.Flush(), w.done())
}

func (w *Writer) frame(kind byte, body []byte) error {
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)))
	check := crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, body)
	return errors.Join(w.raw(head), w.raw(body), w.raw(binary.BigEndian.AppendUint32(nil, check)))
}

func (w *Writer) raw(b []byte) error {
	w.sum.Write(b) //nolint:errcheck // a hash never fails
	_, err := w.w.Write(b)
	return err
}
