package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"filippo.io/age"

	"shoal/consensus/store"
)

// ageMagic is how every age file begins.
const ageMagic = "age-encryption.org/v1"

// Reader reads a backup. What it returns before Next has returned io.EOF is not proven
// to be whole: read a file once to the end before anything is done with it.
type Reader struct {
	r      *bufio.Reader
	sum    hash.Hash
	head   Head
	secret []byte
	shard  uint64
	begun  bool
	totals Totals
	ended  bool
}

// NewReader reads the beginning. Errors: ErrDamaged, ErrNewer, ErrPassphrase, and what
// reading gives.
func NewReader(r io.Reader, passphrase string) (*Reader, error) {
	br := &Reader{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	if err := br.unseal(passphrase); err != nil {
		return nil, err
	}
	begin := make([]byte, len(magic))
	if err := br.raw(begin); err != nil {
		return nil, err
	}
	if string(begin) != magic {
		return nil, fmt.Errorf("%w: this is no backup of a Shoal cluster", ErrDamaged)
	}
	body, err := br.expect(kindHead)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, &br.head); err != nil {
		return nil, fmt.Errorf("%w: its head is not readable", ErrDamaged)
	}
	if br.head.Format > Format {
		return nil, fmt.Errorf("%w (%s, format %d; this program knows %d): restore it with that version or a later one",
			ErrNewer, br.head.Version, br.head.Format, Format)
	}
	if br.head.Format < 1 {
		return nil, fmt.Errorf("%w: its head names no format", ErrDamaged)
	}
	if br.secret, err = br.expect(kindSecrets); err != nil {
		return nil, err
	}
	br.secret = bytes.Clone(br.secret)
	return br, nil
}

// unseal puts the decryption in front where the file is encrypted.
func (r *Reader) unseal(passphrase string) error {
	begin, err := r.r.Peek(len(ageMagic))
	if err != nil || string(begin) != ageMagic {
		return nil // in the clear, or too short for either: the next read tells
	}
	if passphrase == "" {
		return fmt.Errorf("%w: give its passphrase with --passphrase-file", ErrPassphrase)
	}
	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPassphrase, err)
	}
	clear, err := age.Decrypt(r.r, identity)
	var wrong *age.NoIdentityMatchError
	if errors.As(err, &wrong) {
		return fmt.Errorf("%w, and not with this passphrase", ErrPassphrase)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	r.r = bufio.NewReaderSize(clear, 64<<10)
	return nil
}

// Head is what the file says about itself.
func (r *Reader) Head() Head { return r.head }

// Secrets are the cluster's, as NewWriter got them.
func (r *Reader) Secrets() []byte { return r.secret }

// Totals are complete once Next has returned io.EOF.
func (r *Reader) Totals() Totals { return r.totals }

// Next returns further keys of a shard; io.EOF says that the file is whole. Errors:
// ErrDamaged, and what reading gives.
func (r *Reader) Next() (shard uint64, kvs []store.KV, err error) {
	for !r.ended {
		kind, body, err := r.frame()
		if err != nil {
			return 0, nil, err
		}
		switch kind {
		case kindShard:
			var n int
			if r.shard, n = binary.Uvarint(body); n != len(body) || r.shard > store.MaxShard {
				return 0, nil, fmt.Errorf("%w: bad shard number", ErrDamaged)
			}
			r.begun = true
			r.totals.Shards++
		case kindKeys:
			kvs, err := store.DecodeKVs(body)
			if err != nil || !r.begun {
				return 0, nil, fmt.Errorf("%w: unreadable keys of shard %d", ErrDamaged, r.shard)
			}
			r.totals.Keys += int64(len(kvs))
			return r.shard, kvs, nil
		case kindEnd:
			return 0, nil, r.end(body)
		default:
			return 0, nil, fmt.Errorf("%w: unknown part %q", ErrDamaged, kind)
		}
	}
	return 0, nil, io.EOF
}

// end compares what the file says that it holds with what was read.
func (r *Reader) end(body []byte) error {
	var said Totals
	if err := json.Unmarshal(body, &said); err != nil {
		return fmt.Errorf("%w: its end is not readable", ErrDamaged)
	}
	if !bytes.Equal(said.Sum, r.totals.Sum) || said.Keys != r.totals.Keys || said.Shards != r.totals.Shards {
		return fmt.Errorf("%w: its checksum does not match", ErrDamaged)
	}
	if _, err := r.r.ReadByte(); err != io.EOF {
		return fmt.Errorf("%w: there is something behind its end", ErrDamaged)
	}
	r.ended = true
	return io.EOF
}

func (r *Reader) expect(want byte) ([]byte, error) {
	kind, body, err := r.frame()
	if err == nil && kind != want {
		err = fmt.Errorf("%w: part %q where %q should be", ErrDamaged, kind, want)
	}
	return body, err
}

func (r *Reader) frame() (kind byte, body []byte, err error) {
	r.totals.Sum = r.sum.Sum(nil) // of everything before this frame
	head := make([]byte, 5)
	if err := r.raw(head); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > maxFrame {
		return 0, nil, fmt.Errorf("%w: a part of %d bytes", ErrDamaged, size)
	}
	body = make([]byte, size)
	if err := r.raw(body); err != nil {
		return 0, nil, err
	}
	check := make([]byte, 4)
	if err := r.raw(check); err != nil {
		return 0, nil, err
	}
	if crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, body) != binary.BigEndian.Uint32(check) {
		return 0, nil, fmt.Errorf("%w: a checksum does not match", ErrDamaged)
	}
	return head[0], body, nil
}

func (r *Reader) raw(b []byte) error {
	if _, err := io.ReadFull(r.r, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: it is cut short", ErrDamaged)
		}
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	r.sum.Write(b) //nolint:errcheck // a hash never fails
	return nil
}

// Verify reads a whole backup and returns what it holds. Errors: those of NewReader and Next.
func Verify(r io.Reader, passphrase string) (Head, Totals, error) {
	br, err := NewReader(r, passphrase)
	if err != nil {
		return Head{}, Totals{}, err
	}
	for {
		if _, _, err := br.Next(); err != nil {
			if errors.Is(err, io.EOF) {
				return br.Head(), br.Totals(), nil
			}
			return br.Head(), br.Totals(), err
		}
	}
}
