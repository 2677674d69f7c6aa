// Package shimbin finds the small programs that run beside the peer: peer-shim
// (shim and runc) and peer-containerd (the daemon).
//
// A released peer carries them, compressed, in its own file and extracts them
// once. In a development tree nothing is embedded; then they are looked for
// next to the executable and in $PATH.
package shimbin

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// Names of the programs.
const (
	Shim       = "peer-shim"
	Containerd = "peer-containerd"
)

// The folder always exists, for its README; the programs are there only after
// a release build.
//
//go:embed binary
var embedded embed.FS

// ErrNotFound means that the program is neither embedded, nor beside the executable, nor
// in $PATH.
var ErrNotFound = errors.New("program not found")

// Find returns the absolute path of a program. An embedded one is extracted
// into folder, which is made when needed; what is there already is used only
// if its hash is right.
func Find(name, folder string) (string, error) {
	compressed, err := embedded.Open("binary/" + name + ".zst")
	switch {
	case err == nil:
		defer compressed.Close()
		return extract(compressed, name, folder)
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w: not in this build, not beside it, not in $PATH", name, ErrNotFound)
	}
	return filepath.Abs(path)
}

// extract writes the program under a name that carries its hash, so that an
// upgraded peer never replaces a file that running shims execute.
func extract(compressed io.Reader, name, folder string) (string, error) {
	data, err := io.ReadAll(compressed)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	path := filepath.Join(folder, name+"-"+hex.EncodeToString(sum[:6]))
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return "", err
	}
	defer decoder.Close()
	program, err := decoder.DecodeAll(data, nil)
	if err != nil {
		return "", fmt.Errorf("embedded %s: %w", name, err)
	}
	if intact(path, program) {
		return path, nil
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", err
	}
	return path, writeExecutable(path, program)
}

// intact reports whether the file at path is exactly program.
func intact(path string, program []byte) bool {
	info, err := os.Stat(path)
	if err != nil || info.Size() != int64(len(program)) {
		return false
	}
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return false
	}
	want := sha256.Sum256(program)
	return [sha256.Size]byte(hash.Sum(nil)) == want
}

// writeExecutable makes the file appear whole or not at all.
func writeExecutable(path string, program []byte) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	if _, err = file.Write(program); err != nil {
		file.Close()
		return fmt.Errorf("extract %s: %w", filepath.Base(path), err)
	}
	err = errors.Join(file.Chmod(0o700), file.Sync(), file.Close())
	if err != nil {
		return fmt.Errorf("extract %s: %w", filepath.Base(path), err)
	}
	return os.Rename(file.Name(), path)
}
