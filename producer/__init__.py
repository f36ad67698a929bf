"""What a client of the fleet needs: the wire form, the client, webhook verification. No torch, no SQL."""
