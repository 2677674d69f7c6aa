package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"shoal/peer/admin"
	"shoal/peer/identity"
)

type kubeconfigCommand struct {
	Output string `short:"o" help:"File to write, with mode 0600. Default: the standard output." placeholder:"FILE"`
	All    bool   `help:"List all known peers, not only this host's." default:"true" negatable:""`
}

// Run signs a new administrator's certificate with the CA in the data folder
// and prints it with the peers' addresses.
func (k *kubeconfigCommand) Run(ctx context.Context, root *grammar, std streams) error {
	now := time.Now()
	self, err := identity.Load(root.DataDir, now)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s holds no peer: run `peer join` first, or name its folder with --data-dir", root.DataDir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("only root may read %s: use sudo", root.DataDir)
	case err != nil:
		return err
	}
	endpoints, err := knownEndpoints(ctx, root, self)
	if err != nil {
		return err
	}
	if !k.All {
		endpoints = endpoints[:1]
	}
	text, err := self.Cluster.Kubeconfig(now, endpoints)
	if err != nil {
		return err
	}
	if k.Output == "" {
		_, err = std.out.Write(text)
		return err
	}
	if err := os.WriteFile(k.Output, text, 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	return os.Chmod(k.Output, 0o600) // an existing file keeps its mode otherwise
}

// knownEndpoints asks the running peer, and falls back on the kubeconfig that
// it last wrote. This host's own comes first.
func knownEndpoints(ctx context.Context, root *grammar, self *identity.Peer) ([]identity.Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var endpoints []identity.Endpoint
	status, err := root.local().Status(ctx)
	switch {
	case err == nil:
		for _, peer := range status.Peers {
			endpoints = append(endpoints, identity.Endpoint{Name: peer.Name, Address: peer.Address})
		}
	case errors.Is(err, admin.ErrNotRunning):
		written, readErr := clientcmd.LoadFromFile(filepath.Join(root.DataDir, kubeconfigName))
		if readErr != nil {
			return nil, err
		}
		for name, cluster := range written.Clusters {
			endpoints = append(endpoints, identity.Endpoint{Name: name, Address: strings.TrimPrefix(cluster.Server, "https://")})
		}
	default:
		return nil, err
	}
	if len(endpoints) == 0 {
		return nil, errors.New("the peer knows no address yet: try again in a moment")
	}
	slices.SortFunc(endpoints, func(a, b identity.Endpoint) int {
		if own := cmp.Compare(boolOrder(b.Name == self.Name), boolOrder(a.Name == self.Name)); own != 0 {
			return own
		}
		return cmp.Compare(a.Name, b.Name)
	})
	return endpoints, nil
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}
