package cli

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"crypto/x509"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"

	"shoal/peer/identity"
)

// maxTokenLife keeps a forgotten token from staying a way in for ever.
const maxTokenLife = 365 * 24 * time.Hour

type tokenCommand struct {
	Kubeconfig string `help:"Kubeconfig to use. Default: the data folder's." placeholder:"FILE"`

	Create tokenCreateCommand `cmd:"" help:"Make a token and print the command for the next host."`
	List   tokenListCommand   `cmd:"" help:"List the tokens, without their secrets."`
	Delete tokenDeleteCommand `cmd:"" help:"Delete tokens."`
}

// secrets is the API at kube-system's Secrets, and where it was reached.
func (t *tokenCommand) secrets(root *grammar) (v1.SecretInterface, *rest.Config, error) {
	config, err := restConfig(root.DataDir, t.Kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	client, err := v1.NewForConfig(config)
	if err != nil {
		return nil, nil, err
	}
	return client.Secrets(metav1.NamespaceSystem), config, nil
}

type tokenCreateCommand struct {
	TTL         time.Duration `name:"ttl" help:"How long the token lives, at most a year." default:"24h"`
	Description string        `help:"What it is for."`
	Quiet       bool          `short:"q" help:"Print only the token."`
}

// Run makes the Secret that stands for a token.
func (c *tokenCreateCommand) Run(ctx context.Context, root *grammar, std streams) error {
	if c.TTL < time.Minute || c.TTL > maxTokenLife {
		return fmt.Errorf("--ttl %s is not between 1m and %s", c.TTL, maxTokenLife)
	}
	secrets, config, err := root.Token.secrets(root)
	if err != nil {
		return err
	}
	pin, err := pinOfConfig(config)
	if err != nil {
		return err
	}
	token, err := identity.NewToken(pin)
	if err != nil {
		return err
	}
	expires := time.Now().Add(c.TTL)
	if _, err := secrets.Create(ctx, token.BootstrapSecret(expires, c.Description), metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("make the token: %w", err)
	}
	if c.Quiet {
		_, err = fmt.Fprintln(std.out, token)
		return err
	}
	_, err = fmt.Fprintf(std.out, "On the next host, until %s:\n\n  peer join %s --token %s\n", expires.Format("2006-01-02 15:04 MST"), hostOf(config), token)
	return err
}

func hostOf(config *rest.Config) string {
	if server, err := url.Parse(config.Host); err == nil && server.Host != "" {
		return server.Host
	}
	return config.Host
}

// pinOfConfig is the pin of the cluster whose CA the kubeconfig carries.
func pinOfConfig(config *rest.Config) (string, error) {
	if err := rest.LoadTLSFiles(config); err != nil {
		return "", fmt.Errorf("kubeconfig: %w", err)
	}
	block, _ := pem.Decode(config.CAData)
	if block == nil {
		return "", errors.New("the kubeconfig has no certificate authority, so no token could pin it")
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("the kubeconfig's certificate authority: %w", err)
	}
	return identity.PinOf(ca), nil
}

type tokenListCommand struct{}

// Run prints the tokens as a table.
func (tokenListCommand) Run(ctx context.Context, root *grammar, std streams) error {
	secrets, _, err := root.Token.secrets(root)
	if err != nil {
		return err
	}
	list, err := secrets.List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(bootstrapapi.SecretTypeBootstrapToken)})
	if err != nil {
		return fmt.Errorf("list the tokens: %w", err)
	}
	now := time.Now()
	table := tabwriter.NewWriter(std.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(table, "ID\tEXPIRES\tLEFT\tDESCRIPTION")
	for i := range list.Items {
		record, err := identity.TokenFromSecret(&list.Items[i])
		if err != nil {
			fmt.Fprintf(table, "%s\t\tinvalid\t%v\n", strings.TrimPrefix(list.Items[i].Name, bootstrapapi.BootstrapTokenSecretPrefix), err)
			continue
		}
		expires, left := "never", "-"
		if !record.Expires.IsZero() {
			expires, left = record.Expires.UTC().Format(time.RFC3339), record.Expires.Sub(now).Round(time.Second).String()
		}
		if record.Expired(now) {
			left = "expired"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", record.ID, expires, left, dash(record.Description))
	}
	return table.Flush()
}

type tokenDeleteCommand struct {
	Token []string `arg:"" help:"IDs of tokens, or whole tokens."`
}

// Run deletes the tokens; none of them lets a host in afterwards.
func (d *tokenDeleteCommand) Run(ctx context.Context, root *grammar, std streams) error {
	secrets, _, err := root.Token.secrets(root)
	if err != nil {
		return err
	}
	for _, token := range d.Token {
		id, _, _ := strings.Cut(token, ".")
		err := secrets.Delete(ctx, identity.SecretName(id), metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("there is no token %q (see `peer token list`)", id)
		}
		if err != nil {
			return fmt.Errorf("delete the token %s: %w", id, err)
		}
		fmt.Fprintf(std.out, "token %s deleted\n", id)
	}
	return nil
}
