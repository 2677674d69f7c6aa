package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
)

// ErrNotRunning means that no peer serves the socket.
var ErrNotRunning = errors.New("no peer runs on this data folder")

// Client calls the peer on this host.
type Client struct {
	socket string
	http   http.Client
}

// NewClient is a client of the socket at path. It connects at the first call.
func NewClient(path string) *Client {
	c := &Client{socket: path}
	c.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", path)
	}}
	return c
}

// NewClientOver is a client over a given transport, for simulations.
func NewClientOver(transport http.RoundTripper) *Client {
	return &Client{socket: "peer", http: http.Client{Transport: transport}}
}

// Status asks for the peer's view of the cluster.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var status Status
	return &status, c.get(ctx, statusPath, &status)
}

// Images lists the images on this host.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	var images []Image
	return images, c.get(ctx, imagesPath, &images)
}

// ExplainPlacement asks where a pod goes and why, and why not elsewhere.
func (c *Client) ExplainPlacement(ctx context.Context, namespace, pod string) (*Placement, error) {
	var placement Placement
	query := url.Values{"namespace": {namespace}, "pod": {pod}}
	return &placement, c.get(ctx, placementPath+"?"+query.Encode(), &placement)
}

// ImportImage sends a tarball and hands every progress line on.
func (c *Client) ImportImage(ctx context.Context, tarball io.Reader, progress func(string)) ([]Image, error) {
	return c.stream(ctx, imagesPath, tarball, progress)
}

// Leave takes the peer out of its cluster.
func (c *Client) Leave(ctx context.Context, progress func(string)) error {
	_, err := c.stream(ctx, leavePath, http.NoBody, progress)
	return err
}

// Settings lists the cluster's settings.
func (c *Client) Settings(ctx context.Context) ([]Setting, error) {
	var settings []Setting
	return settings, c.get(ctx, settingsPath, &settings)
}

// Set changes a setting.
func (c *Client) Set(ctx context.Context, name, value string, progress func(string)) error {
	return c.change(ctx, settingsPath, change{Name: name, Value: value}, progress)
}

// Losses finds the shards without quorum.
func (c *Client) Losses(ctx context.Context) ([]Loss, error) {
	var losses []Loss
	return losses, c.get(ctx, lossesPath, &losses)
}

// Recover makes shards go on from the copies on this host.
func (c *Client) Recover(ctx context.Context, shards []uint64, progress func(string)) error {
	return c.change(ctx, recoverPath, change{Shards: shards}, progress)
}

// Hint tells the peer of addresses at which others may be.
func (c *Client) Hint(ctx context.Context, addresses []string) error {
	return c.change(ctx, hintPath, change{Addresses: addresses}, func(string) {})
}

// Backup hands the stream of a backup to use. What use has read is only a backup if Backup returns nil.
func (c *Client) Backup(ctx context.Context, passphrase string, use func(io.Reader) error) error {
	body, err := json.Marshal(change{Passphrase: passphrase})
	if err != nil {
		return err
	}
	response, err := c.do(ctx, http.MethodPost, backupPath, bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	err = use(response.Body)
	if _, drained := io.Copy(io.Discard, response.Body); drained != nil {
		return fmt.Errorf("the peer went away before the backup was complete: %w", drained)
	}
	if failed := response.Trailer.Get(errorTrailer); failed != "" {
		return errors.New(failed) // it says more than what use made of half a stream
	}
	return err
}

func (c *Client) change(ctx context.Context, path string, what change, progress func(string)) error {
	body, err := json.Marshal(what)
	if err != nil {
		return err
	}
	_, err = c.stream(ctx, path, bytes.NewReader(body), progress)
	return err
}

func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://peer"+path, body)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w (%s): start it with `peer join`, or name its folder with --data-dir", ErrNotRunning, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("only root may speak to the peer through %s: use sudo", c.socket)
	case err != nil:
		return nil, fmt.Errorf("ask the peer: %w", err)
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	var refused event
	if err := json.NewDecoder(response.Body).Decode(&refused); err != nil || refused.Error == "" {
		return nil, fmt.Errorf("the peer answered with HTTP status %s", response.Status)
	}
	return nil, errors.New(refused.Error)
}

func (c *Client) get(ctx context.Context, path string, result any) error {
	response, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(result); err != nil {
		return fmt.Errorf("the peer's answer is not readable: %w", err)
	}
	return nil
}

func (c *Client) stream(ctx context.Context, path string, body io.Reader, progress func(string)) ([]Image, error) {
	response, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	decoder := json.NewDecoder(response.Body)
	for {
		var e event
		if err := decoder.Decode(&e); err != nil {
			return nil, fmt.Errorf("the peer went away before it was done: %w", err)
		}
		switch {
		case e.Error != "":
			return nil, errors.New(e.Error)
		case e.Done:
			return e.Images, nil
		default:
			progress(e.Progress)
		}
	}
}
