package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"shoal/peer/admin"
	"shoal/peer/backup"
)

// passphraseFlags say how a backup is locked.
type passphraseFlags struct {
	PassphraseFile string `help:"File with a passphrase that encrypts the backup (in its first line)." placeholder:"FILE"`
}

func (p passphraseFlags) read() (string, error) {
	if p.PassphraseFile == "" {
		return "", nil
	}
	text, err := os.ReadFile(p.PassphraseFile)
	if err != nil {
		return "", fmt.Errorf("passphrase: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", fmt.Errorf("passphrase: the first line of %s is empty", p.PassphraseFile)
	}
	return line, nil
}

type backupCommand struct {
	passphraseFlags
	File  string `arg:"" help:"Where to write the backup, or - for the standard output."`
	Force bool   `help:"Replace the file if it exists."`
}

// Run saves the cluster. The file appears, with mode 0600, only when it is whole and read back.
func (b *backupCommand) Run(ctx context.Context, root *grammar, std streams) error {
	passphrase, err := b.read()
	if err != nil {
		return err
	}
	if b.File == "-" {
		_, err := saveBackup(ctx, root.local(), passphrase, std.out)
		return err
	}
	if _, err := os.Lstat(b.File); err == nil && !b.Force {
		return fmt.Errorf("%s exists: choose another name, or replace it with --force", b.File)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("backup: %w", err)
	}
	partial := b.File + ".partial"
	file, err := os.OpenFile(partial, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	summary, err := saveBackup(ctx, root.local(), passphrase, file)
	if err = errors.Join(err, file.Chmod(0o600), file.Sync(), file.Close()); err == nil {
		err = os.Rename(partial, b.File)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("no backup was made: %w", err), os.Remove(partial))
	}
	fmt.Fprintf(std.out, "%s: %s\n", b.File, summary)
	if passphrase == "" {
		fmt.Fprintln(std.err, "The file holds every Secret and the keys of the cluster in the clear: whoever reads it owns the cluster. --passphrase-file encrypts it.")
	}
	return nil
}

// saveBackup copies the peer's stream and proves on the way that it is a whole backup.
func saveBackup(ctx context.Context, peer *admin.Client, passphrase string, to io.Writer) (summary string, err error) {
	err = peer.Backup(ctx, passphrase, func(stream io.Reader) error {
		head, totals, err := backup.Verify(io.TeeReader(stream, to), passphrase)
		summary = fmt.Sprintf("cluster %s as of %s, %d keys in %d shards",
			head.Cluster, head.Time.UTC().Format("2006-01-02 15:04:05 UTC"), totals.Keys, totals.Shards)
		return err
	})
	return summary, err
}

// Restore is `peer restore`: what a cluster is begun anew from.
type Restore struct {
	passphraseFlags
	File string `arg:"" help:"The backup."`
	Name string `help:"Name of this node, unique in the cluster. Default: the host's name."`

	// DataDir, Passphrase and Progress come from outside this command.
	DataDir    string       `kong:"-"`
	Passphrase string       `kong:"-"`
	Progress   func(string) `kong:"-"`
}

// Run begins a cluster anew in this host's empty data folder.
func (r *Restore) Run(ctx context.Context, root *grammar, parts Parts, std streams) error {
	if parts.Restore == nil {
		return errors.New("this program was built without a peer")
	}
	flags := *r
	var err error
	if flags.Passphrase, err = r.read(); err != nil {
		return err
	}
	file, err := os.Open(r.File)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer file.Close()
	begun := time.Now()
	flags.DataDir, flags.Progress = root.DataDir, func(line string) { fmt.Fprintln(std.out, line) }
	if err := parts.Restore(ctx, flags, file); err != nil {
		return err
	}
	fmt.Fprintf(std.out, "Done in %s. Start the first peer with `peer join` here, then make a token for the next with `peer token create`.\n",
		time.Since(begun).Round(time.Millisecond))
	return nil
}
